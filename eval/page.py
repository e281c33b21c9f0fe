"""The leaderboard as one self-contained HTML page: tables by group, sortable, and the clips."""

from __future__ import annotations

import base64
import html
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.nn import functional

from tave.record import check_record
from tave.video import read_clip, write_video

from .cases import WHOLE
from .runs import Result
from .tables import FEWEST, methods_of


def page(board: dict[str, Any], results: Sequence[Result], title: str, note: str = "", clips: int = 12) -> str:
    """The page as text.

    ``board`` is the content of ``leaderboard.json``, ``note`` a line below the title; the clips of up to ``clips``
    cases of ``results``, spread over the list, are embedded.
    """
    style, script = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))
    data = json.dumps(board).replace("<", "\\u003c")
    notices = "".join(f"<h2>{heading}</h2>{_listed(lines)}" for heading, lines in board["notices"].items())
    ids = _listed([f"{name}: {facts['id']}" for name, facts in board["metrics"].items()])
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{html.escape(title)}</title><style>{style}</style>
<h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>
<p>Means over cases with 95 % bootstrap intervals. An arrow shows the better direction; click a heading to sort.
A dot marks a difference from <b>{html.escape(board["versus"])}</b>, paired over {FEWEST} cases or more, whose interval
leaves out 0; hover to see it. Lines in italics are for comparison: the source clip or the ideal one, the judge's
ceiling and floor, the source after the autoencoder.</p>
<nav></nav><div class="wide"><table id="board"><thead></thead><tbody></tbody></table></div>
{notices}
<h2>Clips</h2><p>The clips of a case play while it is hovered or focused, with colour at half the files' resolution.</p>
<div class="cases">{"".join(_gallery(results, board["versus"], clips))}</div>
<details><summary>Ids</summary>{ids}</details>
<script type="application/json" id="data">{data}</script><script>{script}</script></html>
"""


def _listed(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _gallery(results: Sequence[Result], first: str, count: int) -> list[str]:
    """For each case the source, then every method's edit."""
    cases = list(dict.fromkeys(result.case for result in results))
    chosen = cases if len(cases) <= count else [cases[i * len(cases) // count] for i in range(count)]
    strips = []
    for case in chosen:
        own = {result.method: result for result in reversed([r for r in results if r.case == case])}
        order = [own[method] for method in methods_of(results, first) if method in own]
        shown = [_video("source", order[0].source), *(_video(r.method, r.edited) for r in order)]
        groups, name = html.escape(json.dumps(order[0].groups)), html.escape(case)
        strips.append(
            f'<section class="case" data-groups="{groups}"><h3>{name}</h3><div>{"".join(shown)}</div></section>'
        )
    return strips


def _video(caption: str, path: Path) -> str:
    """A clip as every browser plays it: the files are lossless RGB or 4:4:4, which many don't decode."""
    if not path.is_file():
        return ""
    try:
        check_record(path.parent, [path.name])
        clip = read_clip(path, WHOLE)
    except (OSError, ValueError):
        return f"<figure><figcaption>{html.escape(caption)}: can't be read</figcaption></figure>"
    height, width = clip.frames.shape[2:]
    even = functional.pad(clip.frames, (0, width % 2, 0, height % 2), mode="replicate")  # 4:2:0 has no odd sides
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "clip.mp4"
        write_video(at, even, clip.fps, crf=4, chroma="420")  # crf 0 would be a lossless profile
        data = base64.b64encode(at.read_bytes()).decode()
    video = f'<video src="data:video/mp4;base64,{data}" loop muted playsinline tabindex="0"></video>'
    return f"<figure>{video}<figcaption>{html.escape(caption.replace('_', ' '))}</figcaption></figure>"
