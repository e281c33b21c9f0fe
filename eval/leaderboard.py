"""Door: many run folders -> one leaderboard, as JSON, CSV, Markdown and a page with the clips playing in it; every case in CSV.

    python -m eval.leaderboard runs='outputs/benchmark/**' out=outputs/benchmark

Built from the run folders alone; what a number means is in its id, and two ids never share a column.
"""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from .collect import Collection, apart, collect, find_failed, find_runs
from .metric import MetricError
from .page import NARROW, notices, page
from .score import conf_folder
from .table import ALL, as_json, reference_of


@dataclass
class LeaderboardOptions:
    """Keys of ``conf/leaderboard/leaderboard.yaml``."""

    runs: str = MISSING  # where the run folders are; ** is any depth
    out: str = "."  # folder for leaderboard.json, .csv, .md, .html, and cases.csv
    versus: str = "tave"  # the row that the others are compared with
    metrics: list[str] = field(default_factory=list)  # columns; empty: all that are measured of an edit
    title: str = "Leaderboard"
    clips: int = 12  # cases whose clips the page plays; 0: none
    note: str = ""  # a line below the title: command, commit, hardware


ConfigStore.instance().store(name="leaderboard_schema", node=LeaderboardOptions)

FRAMES = "judge_frames"  # how many the judge's figures are of


def columns(found: Collection, asked: list[str]) -> list[str]:
    """The metrics to show. Raises :class:`MetricError` for one that nobody measured."""
    measured = {name for result in found.results for name in result.figures}
    if unknown := [name for name in asked if name not in measured]:
        raise MetricError(f"metrics={unknown}: no run has measured that; measured are {', '.join(sorted(measured))}")
    return asked or [n for n in found.metrics if n in measured and not reference_of(n)[0] and n != FRAMES]


def markdown(told: dict[str, Any], title: str, note: str) -> str:
    """One table for each group: methods down, metrics across, mean with its interval; what they are read against below."""
    cell = {(r["group"], r["method"], r["metric"]): r for r in told["rows"]}
    lines = [f"# {title}", "", *([note, ""] if note else [])]
    for group in told["groups"]:
        names = [m for m in told["metrics"] if any((group, method, m) in cell for method in told["methods"])]
        count = max((r["n"] for r in told["rows"] if r["group"] == group), default=0)
        lines += [f"## {group} ({count} cases)", "", f"| method | {' | '.join(map(_headed(told), names))} |"]
        lines.append("| --- " * (1 + len(names)) + "|")
        for method in told["methods"]:
            cells = (_shown(cell.get((group, method, name))) for name in names)
            lines.append(f"| {method} | {' | '.join(cells)} |")
        known = {(r["reference"], r["metric"]): r for r in told["beside"] if r["group"] == group}
        for reference in dict.fromkeys(reference for reference, _ in known):
            cells = (_shown(known.get((reference, name))) for name in names)
            lines.append(f"| *{reference}* | {' | '.join(cells)} |")
        lines += ["", *_differences(told, group, names)]
    for heading, entries in notices(told).items():
        lines += [f"## {heading}", "", *(f"- {entry}" for entry in entries), ""]
    ids = [f"- `{name}`: `{about.get('id', '')}`" for name, about in told["metrics"].items()]
    return "\n".join([*lines, "## Ids", "", *ids, ""])


def _differences(told: dict[str, Any], group: str, names: list[str]) -> list[str]:
    """A table of the chosen row minus each other one; none where no case has both."""
    cell = {(p["versus"], p["metric"]): p for p in told["paired"] if p["group"] == group}
    others = [method for method in told["methods"] if any((method, name) in cell for name in names)]
    if not others:
        return []
    lines = [f"| {told['versus']} minus | {' | '.join(map(_headed(told), names))} |", "| --- " * (1 + len(names)) + "|"]
    for method in others:
        lines.append(f"| {method} | {' | '.join(_shown(cell.get((method, name)), 'difference') for name in names)} |")
    return [*lines, "", NARROW, ""]


def _headed(told: dict[str, Any]) -> Any:
    arrows = {True: " ↑", False: " ↓", None: ""}
    return lambda name: name + arrows[told["metrics"][name].get("higher_is_better")]


def _shown(row: dict[str, Any] | None, key: str = "mean") -> str:
    return "" if row is None else f"{row[key]:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def as_csv(told: dict[str, Any]) -> str:
    """The rows, one a line."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, ["method", "group", "metric", "mean", "low", "high", "n"])
    writer.writeheader()
    writer.writerows(told["rows"])
    return sink.getvalue()


def cases_csv(found: Collection) -> str:
    """Every figure of every edit, one edit a line."""
    names = [name for name in found.metrics if any(name in result.figures for result in found.results)]
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(["case", "groups", "method", "seed", *names])
    for result in found.results:
        figures = (f"{result.figures[name]:.6g}" if name in result.figures else "" for name in names)
        writer.writerow([result.case, " ".join(result.groups), result.method, result.seed, *figures])
    return sink.getvalue()


def leaderboard(options: LeaderboardOptions) -> Path:
    """Write the five files and return the page's path.

    Raises:
        MetricError: one line that says what is missing or doesn't go together.
    """
    runs = find_runs(options.runs)
    found = apart(collect(runs, find_failed(options.runs)))
    if not found.results:
        raise MetricError(f"runs={options.runs}: no scored run folder there; run python -m tave.benchmark first")
    told = as_json(found, columns(found, options.metrics), options.versus)
    if options.versus not in told["methods"]:
        raise MetricError(f"versus={options.versus}: no such row; there are {', '.join(told['methods'])}")
    out = Path(options.out)
    made = {
        "leaderboard.json": json.dumps(told, indent=1, allow_nan=False) + "\n",
        "leaderboard.csv": as_csv(told),
        "cases.csv": cases_csv(found),
        "leaderboard.md": markdown(told, options.title, options.note),
        "leaderboard.html": page(told, found.results, options.title, options.note, options.clips),
    }
    _write(out, made)
    return out / "leaderboard.html"


def _write(out: Path, made: dict[str, str]) -> None:
    """All files or none: each waits beside its place until the last one is whole."""
    waiting = {name: out / f".{name}.{os.getpid()}" for name in made}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if taken := [name for name in made if (out / name).is_dir()]:
            raise MetricError(f"out={out} can't be written: {taken[0]} is a folder there")
        for name, text in made.items():
            waiting[name].write_text(text, encoding="utf-8")
        for name, path in waiting.items():
            path.replace(out / name)
    except OSError as error:
        raise MetricError(f"out={out} can't be written: {error}") from error
    finally:
        if out.is_dir():
            for path in waiting.values():
                path.unlink(missing_ok=True)


def summary(told: dict[str, Any]) -> str:
    """The group of all cases, for the terminal."""
    lines = []
    for metric in told["metrics"]:
        lines.append(_headed(told)(metric))
        for row in told["rows"]:
            if row["metric"] == metric and row["group"] == ALL:
                lines.append(f"  {row['method']:<24}{_shown(row)}  n={row['n']}")
    return "\n".join(lines)


@hydra.main(version_base="1.3", config_path=str(conf_folder() / "leaderboard"), config_name="leaderboard")
def main(config: DictConfig) -> None:
    """The door: what a user can mend ends in one line."""
    try:
        if missing := OmegaConf.missing_keys(config):
            raise MetricError(f"{', '.join(sorted(missing))} not set: say runs='outputs/benchmark/**'")
        made = leaderboard(OmegaConf.to_object(config))  # type: ignore[arg-type]
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(summary(json.loads(made.with_suffix(".json").read_text())))
    print(made)


if __name__ == "__main__":
    main()
