"""The report as one HTML page."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tave.config import slug
from tave.eval.cases import read_arrays  # pyright: ignore[reportMissingImports]
from tave.eval.plots import field  # pyright: ignore[reportMissingImports]
from tave.eval.records import is_number  # pyright: ignore[reportMissingImports]
from tave.eval.rules import LEVELS, OPEN, Verdict, bounds, verdicts  # pyright: ignore[reportMissingImports]
from tave.files import FileError
from tave.record import view_note
from tave.report.charts import TIP, arrows, curves, running_median
from tave.report.read import Change, EditReport, RunReport, at, commands, numbers, texts
from tave.video import heat, read_image, shaded
from tave.video.embed import clip_uri, picture_uri, strip_uri

CELLS = 600_000  # of all maps of an edit together, which bounds their size to a few hundred kilobytes
PALE = 160  # px of the frames below the arrows
LONGEST = 300  # characters of a value from a file
PIXELS = 160  # px up to which a clip is shown with sharp pixels
BETTER = {"True": "higher", "False": "lower"}
STAGES = {  # name in metrics.json: in words
    "locating": "first look at whole frames", "encoding": "encoding the clip", "tuning": "tuning",
    "inversion": "inversion", "reconstruction": "reconstruction",
    "segmenting": "cutting out the target", "masking": "finding the mask", "sampling": "sampling",
    "decoding": "decoding", "writing": "writing files", "metrics": "measuring", "report": "this page",
}  # fmt: skip


def page(run: RunReport) -> str:
    """The page as text. Everything that a user or a file gave is escaped; the page may load nothing."""
    style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = f"default-src 'none';img-src data:;media-src data:;style-src 'unsafe-inline';script-src 'sha256-{digest}'"
    name, prompt = (at(run.record["config"], f"video.{key}") or "" for key in ("name", "source_prompt"))
    name = name or run.folder.name
    count, _, height, width = run.source.frames.shape
    facts = f"{count} frames of {width}x{height} px, {run.source.fps:g} frames/s"
    links = "".join(f'<a href="#edit-{slug(edit.name)}">{text(edit.name)}</a>' for edit in run.edits)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{rules}">
<title>{text(name)}: report</title><style>{style}</style></head><body>
<h1>{text(name)}</h1><p>{text(prompt)}</p><p class="dim">{facts}</p>
{f'<nav aria-label="Edits">{links}</nav>' if len(run.edits) > 1 else ""}{TIP}
{"".join(_edit(run, edit) for edit in run.edits)}
{_run(run)}
<script>{script}</script></body></html>
"""


def text(value: Any) -> str:
    """A value from a file as HTML, shortened if need be."""
    shown = str(value)
    return html.escape(shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…")


def number(value: float) -> str:
    """A figure with three significant digits."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


# ---- an edit ---------------------------------------------------------------------------------------------------------


def _edit(run: RunReport, edit: EditReport) -> str:
    known = {"reconstruction_psnr": "reconstruction_psnr", "reconstruction_psnr_autoencoder": "autoencoder_psnr"}
    figures = edit.figures | {name: run.metrics.get(key) for name, key in known.items()}
    notes = "".join(f"<li>{text(note)}</li>" for note in texts(edit.record.get("notes")))
    changes = f"<h3>Options that differ from the run</h3>{_options(edit.changes)}" if edit.changes else ""
    return f"""<section id="edit-{slug(edit.name)}" class="viewer" data-frames="{len(run.source.frames)}"
data-fps="{run.source.fps:g}"><h2>Edit: {text(edit.name)}</h2><p>{text(edit.record.get("target_prompt", ""))}</p>
{f'<ul class="notes">{notes}</ul>' if notes else ""}{_clips(run, edit)}
<h3>What the figures say</h3>{_verdicts(verdicts(figures), bool(edit.figures))}{_all_figures(run, edit)}
<h3>Where the edit goes: the map of each step</h3>{_maps(edit)}
<h3>What the correction blends, and what the image encoder saw</h3>{_field(run, edit)}{changes}</section>"""


def _clips(run: RunReport, edit: EditReport) -> str:
    source, fps = run.source.frames, run.source.fps
    small = ' class="small"' if max(source.shape[-2:]) <= PIXELS else ""
    masked = (shaded(frame, mask.mean(0, keepdim=True)) for frame, mask in zip(source, edit.mask, strict=True))
    shown = {"Source": source, "Mask": masked, "Edit": edit.frames}
    clips = "".join(
        f'<figure><video{small} muted playsinline preload="auto" aria-label="{name}" src="{clip_uri(frames, fps)}">'
        f"</video><figcaption>{name}</figcaption></figure>"
        for name, frames in shown.items()
    )
    shows = f'<p class="dim">{note}</p>' if (note := view_note(edit.folder, edit.record)) else ""
    return f"""<div class="clips">{clips}</div>{shows}<div class="bar"><button type="button">Play</button>
<input type="range" min="0" max="{len(source) - 1}" value="0" step="1" aria-label="Frame"><output></output></div>"""


def _verdicts(found: Sequence[Verdict], measured: bool) -> str:
    if not found:
        return "<p>Nothing was measured.</p>"
    counts = {level: sum(each.level == level for each in found) for level in reversed(LEVELS)}
    counted = (f'<li class="level {_class(level)}">{count} {level}</li>' for level, count in counts.items() if count)
    rows = []
    for each in sorted(found, key=lambda each: LEVELS.index(each.level)):
        beside = "".join(f"<small>{text(word)}: {number(value)}</small>" for word, value in each.beside.items())
        change = "" if each.level in ("good", OPEN) else f"<small>To change it: {text(each.rule.change)}.</small>"
        rows.append(
            f"<tr><td><b>{text(each.rule.title)}</b><small><code>{each.metric}</code></small></td>"
            f'<td data-label="value">{number(each.value)}{beside}</td>'
            f'<td class="level {_class(each.level)}">{each.level}</td>'
            f"<td>{text(each.rule.meaning)}<small>{text(bounds(each.rule))}</small>{change}</td></tr>"
        )
    note = "" if measured else "<p>The edit itself was not measured.</p>"
    table = _table(("Figure", "Value", "Reads as", "What it says"), rows, "stack verdicts")
    return f"""<ul class="summary">{"".join(counted)}</ul>{note}{table}
<p class="dim">A verdict is about one figure of this clip and says no more than the figure does. No verdict: there is
nothing to compare with, or even the ideal clip doesn't reach the threshold.</p>"""


def _table(head: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    """A table; heads that end in `#` are of numbers."""
    heads = "".join(f'<th class="n">{h[:-1]}</th>' if h.endswith("#") else f"<th>{h}</th>" for h in head)
    return f'<table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _class(level: str) -> str:
    return "open" if level == OPEN else level


def _all_figures(run: RunReport, edit: EditReport) -> str:
    facts = run.metrics.get("metrics", {})
    rows = []
    for name, value in edit.figures.items():
        about = facts.get(name, {})
        shown = number(value) if is_number(value) else "-" if value is None else text(value)
        better, unit = BETTER.get(str(about.get("higher_is_better")), ""), text(about.get("unit", ""))
        rows.append(
            f'<tr><td>{text(name)}<small>{text(about.get("id", ""))}</small></td><td class="n">{shown}</td>'
            f"<td>{unit}</td><td>{better}</td></tr>"
        )
    if not rows:
        return ""
    table = _table(("Figure", "Value#", "Unit", "Better"), rows)
    return f"<details><summary>All {len(rows)} figures, with their ids</summary>{table}</details>"


def _maps(edit: EditReport) -> str:
    path = edit.folder / "soft_mask.npz"
    maps, soft = (array.astype(np.float32) for array in read_arrays(path, ("per_step", "soft")).values())
    if maps.ndim != 4 or soft.ndim != 3 or not np.isfinite(maps).all():
        raise FileError(f"{path} holds no maps of a mask: make the edit again")
    if not len(maps):
        return "<p>The region was given, so that there are no maps.</p>"
    per_step = torch.from_numpy(maps)
    per_step = per_step / per_step.amax().clamp(min=1e-12)
    side = max(4, int((CELLS / (per_step.shape[0] * per_step.shape[1])) ** 0.5))
    tiles = {f"step {step}": each for step, each in enumerate(per_step, 1)}
    tiles["average"] = torch.from_numpy(soft)
    drawn = "".join(
        f"<figure>{_strip(heat(tile), f'{name} of the map', longest=side)}<figcaption>{name}</figcaption></figure>"
        for name, tile in tiles.items()
    )
    return f"""<p>Where the two branches of the mask disagree about the noise, from the noisiest step on; black:
nowhere, white: most. One scale for all steps; the average is smoothed and has its own. The slider above moves them.</p>
<div class="maps">{drawn}</div>"""


def _strip(frames: Tensor, label: str, **how: Any) -> str:
    """Frames of which the slider shows one."""
    style = f"aspect-ratio:{frames.shape[-1]}/{frames.shape[-2]};background-image:url({strip_uri(frames, **how)})"
    return f'<div class="strip" role="img" aria-label="{label}" style="{style}"></div>'


def _references(edit: EditReport) -> str:
    """What the image encoder saw of the target."""
    return "".join(
        f'<figure class="over"><img class="still" alt="The target" src="{picture_uri(read_image(path).rgb)}">'
        f"<figcaption>What the image encoder saw of the target</figcaption></figure>"
        for path in sorted(edit.folder.glob("reference*.png"))
    )


def _field(run: RunReport, edit: EditReport) -> str:
    if not (edit.folder / "field.npz").is_file():
        return f'<p>The inter-frame correction was off.</p><div class="two">{_references(edit)}</div>'
    moves = field(edit.folder)
    known = moves[~np.isnan(moves[..., 0])]
    still = float((known == 0).all(-1).mean()) if len(known) else 0.0
    pale = _strip(run.source.frames, "The source, pale", longest=PALE, quality=70)
    return f"""<p>An arrow leads from a cell of the edit to the cell of the next frame that it is blended with, a dot
stays where it is ({100 * still:.0f} % of {len(known)} matches, at the last step). Arrows that follow the object's
motion are what the correction needs; arrows that cross the object are mistaken matches.</p><div class="two"><figure>
<div class="over">{pale}{arrows(moves)}</div><figcaption>The field</figcaption></figure>{_references(edit)}</div>"""


# ---- the run ---------------------------------------------------------------------------------------------------------


def _run(run: RunReport) -> str:
    return f"""<section><h2>The clip: tuning and inversion</h2><div class="two">{_loss(run)}{_reconstruction(run)}</div>
<h3>Time and memory</h3>{_stages(run.metrics.get("stages", {}))}
<h3>Options that differ from the default</h3>{_options(run.changes)}
<h3>How to make it again</h3>{_reproduce(run)}</section>"""


def _loss(run: RunReport) -> str:
    losses = run.losses
    if not losses:
        return "<div><h3>Loss</h3><p>The losses of the tuning were not recorded.</p></div>"
    window = max(5, len(losses) // 8)
    lines = [("dots", losses), ("a", running_median(losses, window))]
    chart = curves(lines, "loss of each tuning step, logarithmic, and its running median", "step", first=1, log=True)
    return f"""<div><h3>Loss</h3><figure>{chart}<figcaption>Each of the {len(losses)} steps has its
own noise level, with which the loss varies by orders of magnitude; the line is the median of {window} steps. It needn't
fall far.</figcaption></figure></div>"""


def _reconstruction(run: RunReport) -> str:
    found = [numbers(run.metrics.get(f"{name}_by_frame")) for name in ("reconstruction", "autoencoder")]
    chart = curves(list(zip("ab", found, strict=True)), "reconstruction of each frame in dB", "frame", first=1)
    if not chart:
        return "<div><h3>Reconstruction</h3><p>The reconstruction was not recorded.</p></div>"
    return f"""<div><h3>Reconstruction</h3><figure>{chart}<figcaption>PSNR of each frame in dB. Line: inverted and
sampled back; dashed: through the autoencoder alone, the most that can be reached.</figcaption></figure></div>"""


def _stages(stages: Mapping[str, Any]) -> str:
    spent = {n: e for n, e in stages.items() if isinstance(e, Mapping) and is_number(e.get("seconds"))}
    longest = max((each["seconds"] for each in spent.values()), default=0) or 1
    rows = []
    for name, each in spent.items():
        before = each.get("remembered")
        note = f"<small>found in the cache; it took {before:.1f} s</small>" if is_number(before) else ""
        peak = f"{each['peak_mb']:.0f} MiB" if is_number(each.get("peak_mb")) else ""
        width = 100 * each["seconds"] / longest
        rows.append(
            f'<tr><td>{text(STAGES.get(name, name))}{note}</td><td class="n">{each["seconds"]:.1f} s</td>'
            f'<td class="n">{peak}</td><td class="wide"><div class="share" style="width:{width:.1f}%"></div></td></tr>'
        )
    total = sum(each["seconds"] for each in spent.values())
    rows.append(f'<tr><th>Together</th><th class="n">{total:.1f} s</th><td></td><td></td></tr>')
    return _table(("Stage", "Time#", "Peak memory#", ""), rows)


def _options(changes: Sequence[Change]) -> str:
    if not changes:
        return "<p>None.</p>"
    rows = [
        f"<tr><td><code>{text(each.key)}</code><small>{text(each.meaning)}</small></td>"
        f'<td data-label="here">{_value(each.value)}</td><td data-label="default">{_value(each.usual)}</td></tr>'
        for each in changes
    ]
    return _table(("Option", "Here", "Default"), rows, "stack")


def _value(value: Any) -> str:
    words = {None: "null", "???": "to be given", "": '""'}
    shown = str(value).lower() if isinstance(value, bool) else value
    return text(words.get(shown, shown) if isinstance(shown, str | None) else shown)


def _reproduce(run: RunReport) -> str:
    record, found = run.record, commands(run)
    made = "\n".join(html.escape(command) for command in found)
    command = f"<pre>{made}</pre>" if made else "<p>It was made from Python, with the options above.</p>"
    facts = {"commit": record.get("commit") or "not in a checkout", "seed": record.get("seed")}
    for part in ("versions", "hardware"):
        facts |= record[part] if isinstance(record.get(part), dict) else {}
    rows = "".join(f"<tr><td>{text(key)}</td><td>{text(value)}</td></tr>" for key, value in facts.items())
    check = html.escape(f"python -m tave.verify run={run.folder} remake=true")
    return f"""{command}<p>To check that the same bits come out, in a temporary folder:</p><pre>{check}</pre>
<table><tbody>{rows}</tbody></table>"""
