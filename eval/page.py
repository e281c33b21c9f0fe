"""The leaderboard as one page that holds everything: tables by group, sortable, and the clips themselves."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.collect import Result
from eval.table import methods_of

_STYLE, _SCRIPT = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".css", ".js"))


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
A dot marks a difference to <b>{html.escape(told["versus"])}</b>, paired over cases, whose interval leaves out 0; it shows
when pointed at.</p>
<nav></nav><div class="wide"><table id="board"><thead></thead><tbody></tbody></table></div>
{_failures(told["failed"])}
<h2>Clips</h2><div class="cases">{"".join(_gallery(results, told["versus"], clips))}</div>
<details><summary>What each number is</summary><ul>{_ids(told["metrics"])}</ul></details>
<script type="application/json" id="told">{data}</script><script>{_SCRIPT}</script></html>
"""


def _failures(failed: Sequence[dict[str, str]]) -> str:
    if not failed:
        return ""
    told = (f"{entry['case']}, {entry['method']}: {entry['error']}" for entry in failed)
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in told)
    return f"<h2>Failed</h2><ul>{lines}</ul>"


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
        shown = [_figure("source", order[0].source), *(_figure(result.method, result.edited) for result in order)]
        groups, name = html.escape(" ".join(order[0].groups)), html.escape(case)
        strips.append(f'<section class="case" data-groups="{groups}"><h3>{name}</h3><div>{"".join(shown)}</div></section>')
    return strips


def _figure(caption: str, path: Path) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    video = f'<video src="data:video/mp4;base64,{data}" autoplay loop muted playsinline controls></video>'
    return f"<figure>{video}<figcaption>{html.escape(caption.replace('_', ' '))}</figcaption></figure>"
