for (const viewer of document.querySelectorAll('.viewer')) {
  const clips = [...viewer.querySelectorAll('video')], strips = viewer.querySelectorAll('.strip');
  const groups = viewer.querySelectorAll('g.frame'), slider = viewer.querySelector('input');
  const button = viewer.querySelector('button'), output = viewer.querySelector('output');
  const count = Number(viewer.dataset.frames), fps = Number(viewer.dataset.fps);
  let playing = false;
  // A promise that the clip shows the frame: `seeked` also comes where it shows it already.
  const seek = (clip, at) => new Promise(done => {
    clip.addEventListener('seeked', done, {once: true});
    clip.currentTime = at;
  });
  const show = number => {
    slider.value = number;
    output.textContent = `frame ${number + 1} of ${count}`;
    for (const strip of strips) strip.style.backgroundPositionY = count > 1 ? `${100 * number / (count - 1)}%` : '0';
    for (const group of groups) group.toggleAttribute('hidden', Number(group.dataset.frame) !== number);
    return Promise.all(clips.filter(clip => clip.readyState).map(clip => seek(clip, (number + .5) / fps)));
  };
  const stop = () => { playing = false; button.textContent = 'Play' };
  slider.addEventListener('input', () => { stop(); show(Number(slider.value)) });
  button.addEventListener('click', async () => {
    if (playing) return stop();
    playing = true;
    button.textContent = 'Pause';
    while (playing) {
      const wait = new Promise(done => setTimeout(done, 1000 / fps));
      await Promise.all([show((Number(slider.value) + 1) % count), wait]);
    }
  });
  for (const clip of clips) clip.addEventListener('loadeddata', () => seek(clip, (Number(slider.value) + .5) / fps));
  show(0);
}
