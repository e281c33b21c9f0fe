"""The leaderboard as one self-contained HTML page: tables by group, sortable, and pictures and clips by case."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tave.record import check_record
from tave.video import Clip, contact_sheet, read_clip
from tave.video.embed import clip_uri, picture_uri

from .cases import WHOLE
from .runs import Result
from .tables import FEWEST, methods_of

STRIP = 1136  # px of a case's pictures across, which is what a page of 1200 px holds
FOLDED = ("Failed", "Missing", "Repeated, and averaged", "Left out")  # notices that may be long


def page(board: dict[str, Any], results: Sequence[Result], title: str, note: str = "", clips: int = 12) -> str:
    """The page as text.

    ``board`` is the content of ``leaderboard.json``, ``note`` a line below the title; the clips of up to ``clips``
    cases of ``results``, spread over the list, are embedded.
    """
    style, script = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
    data = json.dumps(board).replace("<", "\\u003c")
    short = [line for heading, lines in board["notices"].items() if heading not in FOLDED for line in lines]
    long = "".join(
        _folded(f"{heading} ({len(lines)})", lines) for heading, lines in board["notices"].items() if heading in FOLDED
    )
    ids = _folded("Ids", [f"{name}: {facts['id']}" for name, facts in board["metrics"].items()])
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{html.escape(title)}</title><style>{style}</style>
<h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>
<p>Means over cases with 95 % bootstrap intervals. An arrow shows the better direction; click a heading to sort.
A dot marks a difference from <b>{html.escape(board["versus"])}</b>, paired over {FEWEST} cases or more, whose interval
leaves out 0; hover to see it. Lines in italics are for comparison: the source clip or the ideal one, the judge's
ceiling and floor, the source after the autoencoder.</p>{_listed(short)}
<nav></nav><label><input type="checkbox" id="every"> all {len(board["metrics"])} figures</label>
<div class="wide"><table id="board"><thead></thead><tbody></tbody></table></div>
<h2>Cases</h2><p>Frames of the source, and of the edit by {html.escape(board["versus"])}, below each other. The clips of
all methods play while they are hovered or focused, with colour at half the files' resolution.</p>
<div class="cases">{"".join(_gallery(results, board["versus"], clips))}</div>
{long}{ids}
<script type="application/json" id="data">{data}</script><script>{script}</script></html>
"""


def _folded(heading: str, lines: Sequence[str]) -> str:
    return f"<details><summary>{heading}</summary>{_listed(lines)}</details>"


def _listed(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _gallery(results: Sequence[Result], first: str, count: int) -> list[str]:
    """For each case a strip of pictures, and the source and every method's edit as clips."""
    cases = list(dict.fromkeys(result.case for result in results))
    chosen = cases if len(cases) <= count else [cases[i * len(cases) // count] for i in range(count)]
    strips = []
    for case in chosen:
        own = {result.method: result for result in reversed([r for r in results if r.case == case])}
        order = [own[method] for method in methods_of(results, first) if method in own]
        paths = {"source": order[0].source} | {result.method: result.edited for result in order}
        clips = {caption: _read(path) for caption, path in paths.items() if path.is_file()}
        groups, name = html.escape(json.dumps(order[0].groups)), html.escape(case)
        strips.append(
            f'<section class="case" data-groups="{groups}"><h3>{name}</h3>{_strip(list(clips.values())[:2])}'
            f"<details><summary>{len(clips)} clips</summary><div>"
            f"{''.join(_video(caption, clip) for caption, clip in clips.items())}</div></details></section>"
        )
    return strips


def _read(path: Path) -> Clip | None:
    try:
        check_record(path.parent, [path.name])
        return read_clip(path, WHOLE)
    except (OSError, ValueError):
        return None


def _strip(clips: Sequence[Clip | None]) -> str:
    """Up to eight frames of each clip, the clips below each other."""
    rows = [clip.frames for clip in clips if clip is not None]
    if not rows or any(row.shape != rows[0].shape for row in rows):
        return ""
    sheet = contact_sheet(rows)
    uri = picture_uri(sheet, longest=STRIP, quality=90)
    return f'<img class="strip" alt="Frames of source and edit" width="{sheet.shape[2]}" src="{uri}">'


def _video(caption: str, clip: Clip | None) -> str:
    """A clip as every browser plays it: the files are lossless RGB or 4:4:4, which many don't decode."""
    name = html.escape(caption.replace("_", " "))
    if clip is None:
        return f"<figure><figcaption>{name}: can't be read</figcaption></figure>"
    data = clip_uri(clip.frames, clip.fps, crf=4, shortest=1)  # crf 0 would be a lossless profile
    video = f'<video src="{data}" loop muted playsinline tabindex="0"></video>'
    return f"<figure>{video}<figcaption>{name}</figcaption></figure>"
