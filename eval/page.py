"""The leaderboard as one page that holds everything: tables by group, sortable, and the clips themselves."""

from __future__ import annotations

import base64
import html
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.nn import functional

from .annotations import WHOLE
from .collect import Result
from .metric import MetricError
from .table import FEWEST, methods_of
from tave.video import VideoError, read_clip, write_video

_STYLE, _SCRIPT = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))

WITHOUT = "No untouched source, no frozen frame, no pasted target: python -m tave.benchmark makes them."
NARROW = f"Intervals of few cases are too narrow: below {FEWEST} cases no difference is decided, whatever its interval says."


def page(told: dict[str, Any], results: Sequence[Result], title: str, note: str = "", clips: int = 12) -> str:
    """The page as text.

    Args:
        told: the content of ``leaderboard.json``.
        results: the edits; their clips are embedded.
        title: its heading.
        note: a line below it.
        clips: how many cases' clips to embed, spread over the list.
    """
    data = json.dumps(told).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style>
<h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>
<p>Means over cases with 95 % bootstrap intervals. An arrow shows which direction is better; a click on a heading sorts.
A dot marks a difference to <b>{html.escape(told["versus"])}</b>, paired over {FEWEST} cases or more, whose interval leaves out
0; it shows when pointed at. {NARROW} Rows in italics are what the others are read against: the figure of the source clip
or of the ideal one, the judge's ceiling and floor, the source through the autoencoder and back.</p>
<nav></nav><div class="wide"><table id="board"><thead></thead><tbody></tbody></table></div>
{_listed(notices(told))}
<h2>Clips</h2><p>Each row plays while it is pointed at or has the focus, with colour at half the files' resolution.</p>
<div class="cases">{"".join(_gallery(results, told["versus"], clips))}</div>
<details><summary>What each number is</summary><ul>{_ids(told["metrics"])}</ul></details>
<script type="application/json" id="told">{data}</script><script>{_SCRIPT}</script></html>
"""


def notices(told: dict[str, Any]) -> dict[str, list[str]]:
    """What a reader must know of the cases, as heading -> lines; a heading without lines is left out."""
    absent: dict[str, list[str]] = {}
    for entry in told["missing"]:
        absent.setdefault(entry["case"], []).append(entry["method"])
    found = {
        "No control in this table": [] if told["controls"] else [WITHOUT],
        "Failed": [f"{entry['case']}, {entry['method']}: {entry['error']}" for entry in told["failed"]],
        "Missing": [f"{case}: {', '.join(methods)}" for case, methods in absent.items()],
        "There more than once, and averaged": [
            f"{entry['case']}, {entry['method']}: {entry['n']} edits of seed {entry['seed']}" for entry in told["repeated"]
        ],
    }
    return {heading: lines for heading, lines in found.items() if lines}


def _listed(notices: dict[str, list[str]]) -> str:
    def one(heading: str, lines: list[str]) -> str:
        return f"<h2>{heading}</h2><ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"

    return "".join(one(heading, lines) for heading, lines in notices.items())


def _ids(metrics: dict[str, Any]) -> str:
    return "".join(
        f"<li>{html.escape(name)}: <code>{html.escape(str(about.get('id', '')))}</code></li>" for name, about in metrics.items()
    )


def _gallery(results: Sequence[Result], first: str, count: int) -> list[str]:
    """One strip a case: the source, then each method's edit."""
    cases = list(dict.fromkeys(result.case for result in results))
    chosen = cases if len(cases) <= count else [cases[i * len(cases) // count] for i in range(count)]
    strips = []
    for case in chosen:
        own = {result.method: result for result in reversed([r for r in results if r.case == case])}
        order = [own[method] for method in methods_of(results, first) if method in own]
        shown = [_figure("source", _playable(order[0].source)), *(_figure(r.method, _playable(r.edited)) for r in order)]
        groups, name = html.escape(json.dumps(order[0].groups)), html.escape(case)
        strips.append(f'<section class="case" data-groups="{groups}"><h3>{name}</h3><div>{"".join(shown)}</div></section>')
    return strips


def _playable(path: Path) -> bytes | None:
    """A clip as every browser plays it: the files are RGB, shown in false colours, or 4:4:4, which many don't decode."""
    if not path.is_file():
        return None
    try:
        clip = read_clip(path, WHOLE)
        height, width = clip.frames.shape[2:]
        even = functional.pad(clip.frames, (0, width % 2, 0, height % 2), mode="replicate")  # 4:2:0 holds no odd side
        with tempfile.TemporaryDirectory() as folder:
            # crf 0 would be a lossless profile, which they don't play either
            write_video(Path(folder) / "clip.mp4", even, clip.fps, crf=4, chroma="420")
            return (Path(folder) / "clip.mp4").read_bytes()
    except VideoError as error:
        raise MetricError(str(error)) from error


def _figure(caption: str, clip: bytes | None) -> str:
    if clip is None:
        return ""
    data = base64.b64encode(clip).decode()
    video = f'<video src="data:video/mp4;base64,{data}" loop muted playsinline tabindex="0"></video>'
    return f"<figure>{video}<figcaption>{html.escape(caption.replace('_', ' '))}</figcaption></figure>"
