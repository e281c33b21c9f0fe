"""Door: the run folders of a sweep -> experiments/NAME: question, command, table, figure.

python -m tave.train -m experiment=blend_weights
python -m eval.study sweep=outputs/studies/blend_weights out=experiments/blend_weights
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from PIL import Image

from .plots import by_value
from .records import RunError
from .score import conf_folder
from .sweep import Sweep, read_sweep
from .table import interval

LEARNT = "## What was learnt"


@dataclass
class StudyOptions:
    """Keys of ``conf/study/study.yaml``."""

    sweep: str = MISSING
    out: str = MISSING
    cases: str = "*"
    metrics: list[str] = field(default_factory=list)


ConfigStore.instance().store(name="study_schema", node=StudyOptions)


def rows_of(sweep: Sweep, metrics: list[str]) -> list[dict[str, Any]]:
    """Value x metric: ``mean`` over cases of their means over seeds, ``seeds_sd`` of one seed's mean, ``cases``, ``n``."""
    rows = []
    for value in sweep.values:
        members = [outcome for outcome in sweep.outcomes if sweep.value_of(outcome) == value]
        for metric in metrics:
            measured = [outcome for outcome in members if metric in outcome.figures]
            if not measured:
                continue
            cases = {name: fmean(o.figures[metric] for o in measured if o.case == name) for name in {o.case for o in measured}}
            seeds = [fmean(o.figures[metric] for o in measured if o.seed == seed) for seed in {o.seed for o in measured}]
            spread = stdev(seeds) if len(seeds) > 1 else None
            told = {"value": value, "metric": metric, "mean": fmean(cases.values()), "seeds_sd": spread}
            rows.append(told | {"cases": dict(sorted(cases.items())), "n": len(measured)})
    return rows


def paired_rows(rows: list[dict[str, Any]], versus: str) -> list[dict[str, Any]]:
    """Every value minus the value ``versus``, over the cases that both have: mean difference and 95 % bootstrap interval.

    Raises:
        RunError: no value is called so.
    """
    ours = {row["metric"]: row for row in rows if row["value"] == versus}
    if not ours:
        raise RunError(f"versus={versus}: there are {'; '.join(dict.fromkeys(row['value'] for row in rows))}")
    made = []
    for row in rows:
        before = ours[row["metric"]]["cases"] if row["metric"] in ours and row["value"] != versus else {}
        if both := [figure - before[case] for case, figure in row["cases"].items() if case in before]:
            told = dict(zip(("difference", "low", "high"), interval(both), strict=True))
            made.append({"value": row["value"], "versus": versus, "metric": row["metric"], **told, "n": len(both)})
    return made


def table(rows: list[dict[str, Any]], metrics: list[str], about: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each value, a column for each metric, the best in bold."""
    signs = {True: " ↑", False: " ↓", None: ""}
    heads = [f"{name}{signs[about[name]['higher_is_better']]}" for name in metrics]
    lines = [f"| value | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|"]
    cell = {(row["value"], row["metric"]): row for row in rows}
    best = {}
    for name in metrics:
        means, higher = [row["mean"] for row in rows if row["metric"] == name], about[name]["higher_is_better"]
        best[name] = None if higher is None or len(means) < 2 else max(means) if higher else min(means)
    for value in dict.fromkeys(row["value"] for row in rows):
        shown = [_shown(cell.get((value, name)), best[name]) for name in metrics]
        lines.append(f"| {value} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _shown(row: dict[str, Any] | None, best: float | None) -> str:
    if row is None:
        return ""
    text = f"{row['mean']:.4g}" + ("" if row["seeds_sd"] is None else f" ± {row['seeds_sd']:.2g}")
    return f"**{text}**" if row["mean"] == best else text


def by_case(rows: list[dict[str, Any]], metric: str) -> str:
    """Markdown: one metric, a line for each case, a column for each value."""
    measured = [row for row in rows if row["metric"] == metric]
    cases = sorted({name for row in measured for name in row["cases"]})
    lines = [f"| {metric} | {' | '.join(row['value'] for row in measured)} |", "| --- " * (len(measured) + 1) + "|"]
    for name in cases:
        found = [f"{row['cases'][name]:.4g}" if name in row["cases"] else "" for row in measured]
        lines.append(f"| {name} | {' | '.join(found)} |")
    return "\n".join(lines)


def question_of(folder: Path) -> tuple[str, list[str], str]:
    """The study's name, the comment of its file and the command, from the sweep's ``multirun.yaml``."""
    path = folder / "multirun.yaml"
    if not path.is_file():
        return folder.name, [], "unknown"
    told: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)  # as it was typed, interpolations and all
    name = told["hydra"]["runtime"]["choices"].get("experiment") or folder.name
    file = conf_folder() / "experiment" / f"{name}.yaml"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    comment = [line.removeprefix("#").strip() for line in lines if line.startswith("# ") and "@package" not in line]
    given = [f"'{word}'" if set(word) & set(' []{}$*()"') else word for word in told["hydra"]["overrides"]["task"]]
    return str(name), comment, " ".join(["python -m tave.train -m", *given])


def readme(sweep: Sweep, rows: list[dict[str, Any]], metrics: list[str], folder: Path, learnt: str) -> str:
    """The whole README; ``learnt`` is what people wrote under its last heading."""
    name, comment, command = question_of(folder)
    seeds = ", ".join(str(seed) for seed in sorted({outcome.seed for outcome in sweep.outcomes}))
    cases = ", ".join(sorted({outcome.case for outcome in sweep.outcomes}))
    facts = [
        f"- Command: `{command}`",
        f"- Commit {', '.join(sorted(sweep.commits))}; UNet {', '.join(sorted(sweep.weights))}",
        f"- Hardware: {'; '.join(sorted(sweep.hardware))}",
        f"- {len(sweep.outcomes)} edits of {cases}; seeds {seeds}",
        f"- Axes: {', '.join(f'`{axis}`' for axis in sweep.axes) or 'none'}",
    ]
    ids = [f"- `{metric}`: `{sweep.metrics[metric]['id']}`, {sweep.metrics[metric]['unit']}" for metric in metrics]
    return "\n".join(
        [
            *(f"# {name}", "", *comment, "", *facts, "", table(rows, metrics, sweep.metrics), ""),
            *("Means over the cases; ± is the standard deviation of that mean from seed to seed.", ""),
            *("![Every clip as a thin line, the mean as a thick one](figure.png)", "", by_case(rows, metrics[0]), ""),
            *("What the numbers are:", "", *ids, "", LEARNT, "", learnt, ""),
        ]
    )


def study(options: StudyOptions) -> Path:
    """Summarise a sweep into ``out``; returns its README. Raises ValueError with one line for the user."""
    sweep, out = read_sweep(Path(options.sweep), options.cases), Path(options.out)
    measured = {name for outcome in sweep.outcomes for name in outcome.figures}
    metrics = [name for name in options.metrics if name in measured]
    if not metrics:
        raise RunError(f"metrics={options.metrics}: none was measured; there are {', '.join(sorted(measured))}")
    path, rows = out / "README.md", rows_of(sweep, metrics)
    out.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8").partition(LEARNT)[2].strip() if path.is_file() else ""
    drawn = BytesIO()
    by_value(rows, metrics, sweep.metrics).savefig(drawn, dpi=110)
    small = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)  # a third of the bytes, to be committed
    small.save(out / "figure.png", optimize=True)
    about = {name: sweep.metrics[name] for name in metrics}
    (out / "study.json").write_text(json.dumps({"axes": sweep.axes, "metrics": about, "rows": rows}, indent=1) + "\n")
    path.write_text(readme(sweep, rows, metrics, Path(options.sweep), before or "Not written yet."), encoding="utf-8")
    return path


@hydra.main(version_base="1.3", config_path=str(conf_folder() / "study"), config_name="study")
def main(config: DictConfig) -> None:
    """The door: what a user can mend ends in one line."""
    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise RunError(f"{', '.join(missing)} not set: say sweep=outputs/studies/NAME out=experiments/NAME")
        print(study(OmegaConf.to_object(config)))  # type: ignore[arg-type]
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
