"""Many run folders -> one leaderboard as JSON, CSV, Markdown and an HTML page that plays the clips; all figures in CSV.

    python -m tave.eval.leaderboard runs='outputs/benchmark/**' out=outputs/benchmark

It is built from the run folders alone. The meaning of a number is in its id, and two ids never share a column.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tave.cli import entry_point
from tave.config import LeaderboardOptions
from tave.files import prepare, whole_file, write_json

from . import EvalError
from .runs import Results, find, read_results, split_methods
from .tables import ALL, ARROWS, FEWEST, HEADLINE, as_json, code, escape, markdown_table, reference_of, with_gains

NO_CONTROL = "No untouched source, no frozen frame, no pasted target: python -m tave.benchmark makes them."
NARROW = f"Intervals of few cases are too narrow: below {FEWEST} cases no difference is decided, whatever its interval."


def leaderboard(options: LeaderboardOptions) -> Path:
    """Write the five files; returns the page's path."""
    from .page import page

    found = with_gains(split_methods(read_results(find(options.runs), find(options.runs, "failed.json"))))
    if not found.results:
        raise EvalError(f"runs={options.runs}: no measured run folder there; run python -m tave.benchmark first")
    board = as_json(found, _columns(found, options.metrics), options.versus)
    if options.versus not in board["methods"]:
        raise EvalError(f"versus={options.versus}: no such method; there are {', '.join(board['methods'])}")
    board["headline"] = (
        options.metrics or [name for name in board["metrics"] if name in HEADLINE] or [*board["metrics"]]
    )
    board["notices"] = _notices(board)
    out = Path(options.out)
    prepare(out)
    head = ["method", "group", "metric", "mean", "low", "high", "n"]
    names = [name for name in found.metrics if any(name in result.figures for result in found.results)]
    edits = [
        [r.case, " ".join(r.groups), r.method, r.seed]
        + [f"{r.figures[name]:.6g}" if name in r.figures else "" for name in names]
        for r in found.results
    ]
    contents = {
        "leaderboard.csv": _csv(head, ([mean[key] for key in head] for mean in board["means"])),
        "cases.csv": _csv(["case", "groups", "method", "seed", *names], edits),
        "leaderboard.md": markdown(board, options.title, options.note),
        "leaderboard.html": page(board, found.results, options.title, options.note, options.clips),
    }
    write_json(out / "leaderboard.json", board)
    for name, text in contents.items():
        with whole_file(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    for metric in board["metrics"]:  # the group of all cases, for the terminal
        print(_headed(board, metric))
        for each in board["means"]:
            if (each["metric"], each["group"]) == (metric, ALL):
                print(f"  {each['method']:<24}{_shown(each)}  n={each['n']}")
    print(out / "leaderboard.html")
    return out / "leaderboard.html"


def _columns(found: Results, wanted: list[str]) -> list[str]:
    """The metrics to show: ``wanted``, or all that are measured of an edit, first those that matter."""
    measured = {name for result in found.results for name in result.figures}
    if unknown := [name for name in wanted if name not in measured]:
        raise EvalError(f"metrics={unknown}: no run has measured that; measured are {', '.join(sorted(measured))}")
    shown = [name for name in found.metrics if name in measured and name != "judge_frames"]
    own = [name for name in shown if not reference_of(name)[0]]
    return wanted or sorted(own, key=lambda name: HEADLINE.index(name) if name in HEADLINE else len(HEADLINE))


def _notices(board: dict[str, Any]) -> dict[str, list[str]]:
    """What a reader must know about the cases: heading -> lines."""
    absent: dict[str, list[str]] = {}
    for pair in board["missing"]:
        absent.setdefault(pair["case"], []).append(pair["method"])
    found = {
        "No control in this table": [] if board["controls"] else [NO_CONTROL],
        "Failed": [f"{each['case']}, {each['method']}: {each['error']}" for each in board["failed"]],
        "Missing": [f"{case}: {', '.join(methods)}" for case, methods in absent.items()],
        "Repeated, and averaged": [
            f"{each['case']}, {each['method']}: {each['n']} edits of seed {each['seed']}" for each in board["repeated"]
        ],
        "Left out": board["left_out"],
        "Few cases": [NARROW],
    }
    return {heading: lines for heading, lines in found.items() if lines}


def markdown(board: dict[str, Any], title: str, note: str) -> str:
    """For each group a table of methods and metrics, mean with interval, above what the methods are compared with."""
    cell = {(e["group"], e["method"], e["metric"]): e for e in board["means"]}
    lines = [f"# {escape(title)}", "", *([escape(note), ""] if note else [])]
    for group in board["groups"]:
        names = [m for m in board["metrics"] if any((group, method, m) in cell for method in board["methods"])]
        count = max((e["n"] for e in board["means"] if e["group"] == group), default=0)
        body = [[escape(method), *(_shown(cell.get((group, method, m))) for m in names)] for method in board["methods"]]
        known = {(e["reference"], e["metric"]): e for e in board["references"] if e["group"] == group}
        for reference in dict.fromkeys(reference for reference, _ in known):
            body.append([f"*{reference}*", *(_shown(known.get((reference, m))) for m in names)])
        heads = [escape(_headed(board, m)) for m in names]
        lines += [f"## {escape(group)} ({count} cases)", "", *markdown_table(["method", *heads], body), ""]
        pair = {(p["method"], p["metric"]): p for p in board["paired"] if p["group"] == group}
        others = [method for method in board["methods"] if any((method, m) in pair for m in names)]
        if others:
            body = [
                [escape(method), *(_shown(pair.get((method, m)), "difference") for m in names)] for method in others
            ]
            lines += [*markdown_table([f"{escape(board['versus'])} minus", *heads], body), ""]
    for heading, entries in board["notices"].items():
        lines += [f"## {heading}", "", *(f"- {escape(line)}" for line in entries), ""]
    ids = [f"- {code(name)}: {code(facts['id'])}" for name, facts in board["metrics"].items()]
    return "\n".join([*lines, "## Ids", "", *ids, ""])


def _headed(board: dict[str, Any], name: str) -> str:
    return name + ARROWS[board["metrics"][name]["higher_is_better"]]


def _shown(record: dict[str, Any] | None, key: str = "mean") -> str:
    return "" if record is None else f"{record[key]:.3g} [{record['low']:.3g}, {record['high']:.3g}]"


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    sink = io.StringIO()
    csv.writer(sink).writerows([_cell(value) for value in line] for line in (head, *lines))
    return sink.getvalue()


def _cell(value: Any) -> Any:
    """A name that a spreadsheet would take for a formula gets an apostrophe; numbers stay as they are."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@")):
        return value
    with contextlib.suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


def _work(options: LeaderboardOptions, _: object) -> None:
    leaderboard(options)


main = entry_point("tabulate runs", "leaderboard/leaderboard", _work)

if __name__ == "__main__":
    main()
