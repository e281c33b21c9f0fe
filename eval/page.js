const T=JSON.parse(document.getElementById('data').textContent),arrow={true:' \u2191',false:' \u2193'};
const every=document.getElementById('every');every.onchange=()=>draw();
let group=T.groups[0],sorted=null,up=false;
const at=(g,m,k)=>T.means.find(r=>r.group===g&&r.method===m&&r.metric===k);
const versus=(g,m,k)=>T.paired.find(r=>r.group===g&&r.versus===m&&r.metric===k);
const num=x=>Math.abs(x)>=100?x.toFixed(0):Math.abs(x)>=10?x.toFixed(1):x.toFixed(3);
function draw(){
  const chosen=every.checked?Object.keys(T.metrics):T.headline,names=chosen.filter(k=>T.methods.some(m=>at(group,m,k)));
  const full=Math.max(0,...T.means.filter(r=>r.group===group).map(r=>r.n));
  let methods=[...T.methods];
  if(sorted)methods.sort((a,b)=>{const x=at(group,a,sorted),y=at(group,b,sorted);
    return !x?1:!y?-1:(up?1:-1)*(x.mean-y.mean)});
  const best={};
  for(const k of names){const h=T.metrics[k].higher_is_better;if(h===null||h===undefined)continue;
    const v=methods.map(m=>at(group,m,k)).filter(Boolean).map(r=>r.mean);best[k]=h?Math.max(...v):Math.min(...v)}
  const head=document.createElement('tr');
  for(const k of ['method',...names]){const th=document.createElement('th');
    th.textContent=k.replaceAll('_',' ')+(T.metrics[k]?arrow[T.metrics[k].higher_is_better]||'':'');
    if(T.metrics[k]){th.title=(T.metrics[k].unit||'')+'  '+(T.metrics[k].id||'');
      th.onclick=()=>{up=sorted===k?!up:T.metrics[k].higher_is_better===false;sorted=k;draw()}}
    else th.onclick=()=>{sorted=null;draw()};
    th.tabIndex=0;th.onkeydown=e=>{if(e.key==='Enter')th.onclick()};
    if(k===sorted)th.setAttribute('aria-sort',up?'ascending':'descending');
    head.append(th)}
  const body=methods.map(m=>{const tr=document.createElement('tr');if(m===T.versus)tr.className='own';
    const name=document.createElement('td');name.textContent=m.replaceAll('_',' ');tr.append(name);
    for(const k of names){const td=document.createElement('td'),r=at(group,m,k),p=versus(group,m,k);
      if(r){td.textContent=num(r.mean);const s=document.createElement('small');
        s.textContent='['+num(r.low)+', '+num(r.high)+']'+(r.n<full?' n='+r.n:'');td.append(s);
        if(r.mean===best[k])td.classList.add('best');
        if(p){td.title=T.versus+' minus '+m+': '+num(p.difference)+' ['+num(p.low)+', '+num(p.high)+'], n='+p.n;
          if(p.decided)td.classList.add('clear')}}
      else td.textContent='\u2013';
      tr.append(td)}
    return tr});
  const compared=T.references.filter(r=>r.group===group);
  for(const f of new Set(compared.map(r=>r.reference))){const tr=document.createElement('tr');tr.className='reference';
    const name=document.createElement('td');name.textContent=f;tr.append(name);
    for(const k of names){const td=document.createElement('td'),r=compared.find(r=>r.reference===f&&r.metric===k);
      td.textContent=r?num(r.mean):'';tr.append(td)}
    body.push(tr)}
  document.querySelector('#board thead').replaceChildren(head);
  document.querySelector('#board tbody').replaceChildren(...body);
  document.querySelectorAll('nav button').forEach(b=>b.setAttribute('aria-pressed',b.dataset.group===group));
  document.querySelectorAll('.case').forEach(c=>c.hidden=group!=='all'&&!JSON.parse(c.dataset.groups).includes(group));
}
for(const g of T.groups){const b=document.createElement('button');b.textContent=g.replaceAll('_',' ');b.dataset.group=g;
  b.onclick=()=>{group=g;draw()};document.querySelector('nav').append(b)}
draw();
const run=(c,on)=>c.querySelectorAll('video').forEach(v=>{if(on){v.currentTime=0;v.play()}else v.pause()});
for(const c of document.querySelectorAll('.case')){c.onpointerenter=()=>run(c,true);c.onpointerleave=()=>run(c,false);
  c.addEventListener('focusin',()=>run(c,true));c.addEventListener('focusout',()=>run(c,false))}
