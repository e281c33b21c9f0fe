// The panel of a job: follows /api/jobs/ID, shows stages, clips, figures and downloads. Texts are set as text, never as HTML.
(() => {
  const LABELS = {locating: "Looking for the object", encoding: "Encoding the clip", tuning: "Tuning on the clip",
    inversion: "Inverting the clip", reconstruction: "Sampling it back", masking: "Finding the region", sampling: "Sampling the edit",
    decoding: "Decoding", writing: "Writing", metrics: "Measuring", report: "Writing the report"};
  const STATES = {queued: "Waiting", running: "At work", stopping: "Stopping at the end of this step", done: "Done",
    failed: "Failed", cancelled: "Cancelled"};
  const VIEWS = [["edited", "Edit"], ["mask", "Mask"], ["soft", "Soft map"]];
  const FIGURES = {background_psnr_outside_mask: "Background outside the mask, dB", mask_iou_union: "Mask IoU",
    residue_old: "Residue of the old object", object_presence: "Frames that show an object",
    ideal_psnr_aligned: "PSNR to the ideal clip, dB", warp_error_object: "Warp error of the object"};

  function make(tag, props = {}, ...kids) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(props)) {
      if (key === "text") made.textContent = value;
      else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value);
    }
    made.append(...kids);
    return made;
  }

  const time = s => s == null ? "" : s < 90 ? `${Math.ceil(s)} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
  const url = (box, name) => `/api/jobs/${box.dataset.taveJob}/files/${name}`;

  function player(box) {
    const below = make("video", {muted: "", playsinline: "", loop: "", preload: "auto"});
    const above = make("video", {muted: "", playsinline: "", loop: "", preload: "auto", class: "above"});
    below.muted = above.muted = true;
    const wipe = make("input", {type: "range", min: 0, max: 100, value: 50, "aria-label": "wipe between source and edit"});
    const cut = () => { above.style.clipPath = `inset(0 0 0 ${wipe.value}%)`; line.style.left = `${wipe.value}%`; };
    const line = make("div", {class: "line"});
    wipe.addEventListener("input", cut);
    const step = () => {
      if (!document.contains(below)) return;
      if (Math.abs(below.currentTime - above.currentTime) > 0.08 && above.readyState > 1) above.currentTime = below.currentTime;
      setTimeout(step, 100);
    };
    const tabs = make("div", {class: "tabs", role: "group"});
    for (const [name, label] of VIEWS) tabs.append(make("button", {type: "button", "data-view": name, text: label, onclick: () => show(name)}));
    const show = (name, plays = true) => {
      tabs.querySelectorAll("button").forEach(each => each.classList.toggle("on", each.dataset.view === name));
      const at = url(box, `web/${name}.mp4`);
      if (above.getAttribute("src") !== at) above.src = at;
      if (!plays) return;
      above.play().catch(() => {});
      below.play().catch(() => {});
    };
    cut();
    setTimeout(step, 100);  // not each frame: the edit needs the processor
    const stage = make("div", {class: "stage"}, below, above, line,
      make("span", {text: "source"}));
    return {root: make("div", {class: "player"}, tabs, stage, wipe), below, show, tabs, seen: ""};
  }

  function panel(box) {
    const parts = {id: box.dataset.taveJob, head: make("div", {class: "head"}), bars: make("details", {class: "bars", open: ""}), notes: make("div", {class: "notes"}),
      player: player(box), figures: make("table"), shown: make("p", {class: "shown"}),
      files: make("div", {class: "files"})};
    parts.cancel = make("button", {type: "button", class: "cancel", text: "Cancel",
      onclick: () => fetch(`/api/jobs/${box.dataset.taveJob}/cancel`, {method: "POST"})});
    parts.player.root.hidden = true;
    box.replaceChildren(make("div", {class: "top"}, parts.head, parts.cancel), parts.notes, parts.player.root, parts.shown, parts.bars, parts.figures, parts.files);
    return parts;
  }

  function bars(parts, job) {
    const rows = job.stages.map(stage => {
      const share = ["done", "remembered"].includes(stage.state) ? 100 : 100 * stage.done / stage.total;
      const fill = make("i");
      fill.style.width = `${share}%`;
      const right = stage.state === "remembered" ? "remembered" : stage.state === "done" ? time(stage.seconds)
        : stage.state === "running" && stage.left != null ? `${time(stage.left)} left` : stage.left ? `about ${time(stage.left)}` : "";
      return make("div", {class: `bar ${stage.state}`}, make("span", {text: LABELS[stage.name] || stage.name}),
        make("div", {class: "track"}, fill), make("span", {class: "time", text: right}));
    });
    parts.bars.replaceChildren(make("summary", {text: "Stages"}), ...rows);
  }

  function clips(box, parts, job) {
    const there = VIEWS.map(view => view[0]).filter(name => job.files.includes(`web/${name}.mp4`));
    const whole = job.files.includes("web/source.mp4"), key = there.join() + whole;
    if (!there.length || key === parts.player.seen) return;
    parts.player.seen = key;
    parts.player.root.hidden = false;
    parts.player.root.classList.toggle("single", !whole);
    parts.player.tabs.querySelectorAll("button").forEach(each => { each.hidden = !there.includes(each.dataset.view); });
    if (whole) parts.player.below.src = url(box, "web/source.mp4");
    parts.player.show(there[0], whole);  // the soft map at work stands still until it is chosen: playing takes processor
  }

  function update(box, job) {
    const parts = box.tave = box.tave || panel(box);
    const over = ["done", "failed", "cancelled"].includes(job.state);
    const more = job.state === "queued" ? (job.position ? `, ${job.position} before this` : ", next") : over ? (job.seconds ? ` after ${time(job.seconds)}` : "")
      : job.seconds_left != null ? `, about ${time(job.seconds_left)} left` : "";
    parts.head.textContent = STATES[job.state] + more;
    box.dataset.state = job.state;
    parts.cancel.hidden = over;
    parts.notes.replaceChildren(...(job.error ? [make("p", {class: "error", text: job.error})] : []),
      ...job.warnings.map(text => make("p", {class: "warning", text})));
    bars(parts, job);
    clips(box, parts, job);
    parts.shown.textContent = job.shown || "";
    const figures = Object.entries(FIGURES).filter(([key]) => key in job.figures);
    parts.figures.replaceChildren(...figures.map(([key, label]) => make("tr", {}, make("td", {text: label}), make("td", {text: job.figures[key].toFixed(2)}))));
    const names = job.files.filter(name => !name.startsWith("web/"));
    parts.files.replaceChildren(...names.map(name => make("a", {href: url(box, name), text: name, ...(name === "report.html" ? {target: "_blank"} : {download: name})})));
    if (over) box.dataset.over = "1";
    if (job.state === "done") parts.bars.open = false;
  }

  async function tick() {
    for (const box of document.querySelectorAll("[data-tave-job]")) {
      const id = box.dataset.taveJob;
      if (box.tave && (box.tave.id !== id || !box.contains(box.tave.head))) {  // Gradio gave the element another job
        box.tave = null;
        delete box.dataset.over;
        delete box.dataset.state;
      }
      if (box.dataset.over || box.busy) continue;
      box.busy = true;
      try {
        const answer = await fetch(`/api/jobs/${id}`), job = await answer.json();
        if (box.dataset.taveJob !== id) { /* asked again for the new one */ }
        else if (answer.ok) update(box, job);
        else if (answer.status === 404) { box.textContent = "This job was removed."; box.dataset.over = "1"; }
      } catch (error) { /* the server restarts: asked again */ }
      box.busy = false;
    }
  }
  setInterval(tick, 1000);
})();
