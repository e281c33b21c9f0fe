"""The run folders of a sweep -> a study: README.md with question, command and tables, study.json, figure.png.

python -m tave.train -m experiment=blend_weights
python -m tave.eval.study sweep=outputs/studies/blend_weights out=experiments/blend_weights
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf

from tave.cli import entry_point
from tave.config import CONF, StudyOptions
from tave.files import read_json, write_json

from . import EvalError
from .runs import PICTURES, Result, find, read_results
from .tables import ARROWS, by_method, markdown_table

FINDINGS = "## Findings"
EDIT_SECONDS = "edit_seconds/-/masking and sampling/clip/v2"
# Measured of the run and not of an edit.
RUN_METRICS = {
    "reconstruction_psnr": {"id": "reconstruction_psnr/-/whole frames/clip/v1", "higher_is_better": True, "unit": "dB"},
    "edit_seconds": {"id": EDIT_SECONDS, "higher_is_better": False, "unit": "s"},
}


@dataclass
class Sweep:
    """Results of a sweep, each with the values of the axes as its method.

    ``values``: these, numbers in ascending order; ``metrics``: name -> id, direction and unit; ``records``: every
    run's ``run.json``.
    """

    results: list[Result]
    axes: list[str]
    values: list[str]
    metrics: dict[str, dict[str, Any]]
    records: list[dict[str, Any]]


def read_sweep(folder: Path, cases: str = "*") -> Sweep:
    """Read every measured run below ``folder`` whose clip's name matches ``cases``."""
    runs = {path: read_json(path.with_name("run.json")) for path in find(str(folder))}
    runs = {path: run for path, run in runs.items() if fnmatch(str(run["config"]["video"]["name"]), cases)}
    found = read_results(runs)
    results = []
    for path, run in runs.items():
        own, more = [r for r in found.results if r.folder.parents[1] == path.parent], _run_figures(read_json(path))
        name = run["config"]["video"]["name"]
        results += [replace(r, case=name if len(own) == 1 else r.case, figures=more | r.figures) for r in own]
    if not results:
        raise EvalError(f"sweep={folder}: no measured run of {cases} in it; run python -m tave.train -m experiment=...")
    if len(unets := sorted(set(map(_unet, runs.values())))) > 1:
        raise EvalError(f"sweep={folder}: its runs used UNets {', '.join(unets)}; delete the older runs, go on")
    keys = dict.fromkeys(key for result in results for key in result.options or {} if key != "weights")
    axes = [key for key in keys if _differs(results, key)]
    results.sort(key=lambda result: [_rank((result.options or {}).get(key)) for key in axes])
    for index, result in enumerate(results):
        words = (f"{key.rpartition('.')[2]}={json.dumps((result.options or {}).get(key))}" for key in axes)
        results[index] = replace(result, method=", ".join(words).replace('"', "") or "as it is")
    values = list(dict.fromkeys(result.method for result in results))
    return Sweep(results, axes, values, RUN_METRICS | found.metrics, list(runs.values()))


def _differs(results: list[Result], key: str) -> bool:
    """Whether an option differs between runs; the target's picture counts if it differs within a clip."""
    values: dict[str, set[str]] = {}
    for result in results:
        value = json.dumps((result.options or {}).get(key))
        values.setdefault(result.case if key == PICTURES else "", set()).add(value)
    return any(len(found) > 1 for found in values.values())


def _rank(value: Any) -> tuple[Any, ...]:
    if isinstance(value, list):
        return (1, [_rank(part) for part in value])
    return (0, float(value)) if isinstance(value, int | float) else (2, str(value))


def _run_figures(record: dict[str, Any]) -> dict[str, float]:
    stages = record.get("stages", {})
    parts = [stages[name] for name in ("masking", "sampling") if name in stages]
    spent = sum(float(part["seconds"]) + float(part.get("remembered", 0)) for part in parts)  # as if nothing was cached
    known = {"reconstruction_psnr": record.get("reconstruction_psnr"), "edit_seconds": spent or None}
    return {key: float(value) for key, value in known.items() if value is not None}


def _unet(record: dict[str, Any]) -> str:
    hashes = sorted(sha for file, sha in record.get("weights", {}).items() if file.partition("/")[0] == "unet")
    return "+".join(sha[:12] for sha in hashes) or "unknown"


def means(sweep: Sweep, metrics: list[str]) -> list[dict[str, Any]]:
    """For each value and metric: ``mean`` over ``cases`` of their means over seeds, ``seeds_sd`` of one seed's mean."""
    made = []
    for metric in metrics:
        found = by_method(sweep.results, metric)
        for value in (value for value in sweep.values if value in found):
            own = [r for r in sweep.results if r.method == value and metric in r.figures]
            seeds = [fmean(r.figures[metric] for r in own if r.seed == seed) for seed in {r.seed for r in own}]
            numbers = {"mean": fmean(found[value].values()), "seeds_sd": stdev(seeds) if len(seeds) > 1 else None}
            made.append({"value": value, "metric": metric, "cases": found[value], "n": len(own)} | numbers)
    return made


def _tables(found: list[dict[str, Any]], facts: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Markdown: every value's means, the best in bold; the first metric's for each case and value."""
    cell = {(each["value"], each["metric"]): each for each in found}
    best = {}
    for name, about in facts.items():
        values, higher = [each["mean"] for each in found if each["metric"] == name], about["higher_is_better"]
        best[name] = None if higher is None or len(values) < 2 else max(values) if higher else min(values)

    def shown(value: str, name: str) -> str:
        if (each := cell.get((value, name))) is None:
            return ""
        text = f"{each['mean']:.4g}" + ("" if each["seeds_sd"] is None else f" ± {each['seeds_sd']:.2g}")
        return f"**{text}**" if each["mean"] == best[name] else text

    heads = [name + ARROWS[about["higher_is_better"]] for name, about in facts.items()]
    body = [[v, *(shown(v, name) for name in facts)] for v in dict.fromkeys(each["value"] for each in found)]
    first = next(iter(facts))
    measured = [each for each in found if each["metric"] == first]
    cases = sorted({name for each in measured for name in each["cases"]})
    lines = [[c, *(f"{e['cases'][c]:.4g}" if c in e["cases"] else "" for e in measured)] for c in cases]
    by_case = markdown_table([first, *(each["value"] for each in measured)], lines)
    return "\n".join(markdown_table(["value", *heads], body)), "\n".join(by_case)


def _question(folder: Path) -> tuple[str, list[str], str]:
    """The study's name, the comment of its file and the command, from the sweep's ``multirun.yaml``."""
    path = folder / "multirun.yaml"
    if not path.is_file():
        return folder.name, [], "unknown"
    record: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)["hydra"]  # type: ignore[index]
    name = record["runtime"]["choices"].get("experiment") or folder.name
    file = CONF / "experiment" / f"{name}.yaml"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    comment = [line.removeprefix("#").strip() for line in lines if line.startswith("# ") and "@package" not in line]
    given = [f"'{word}'" if set(word) & set(' []{}$*()"') else word for word in record["overrides"]["task"]]
    return str(name), comment, " ".join(["python -m tave.train -m", *given])


def _readme(sweep: Sweep, found: list[dict[str, Any]], metrics: list[str], folder: Path, findings: str) -> str:
    name, comment, command = _question(folder)
    hardware = {
        f"{h.get('machine', '?')}, threads: {h.get('threads', '?')}, {'a GPU' if h.get('cuda') else 'no GPU'}"
        for h in (record.get("hardware", {}) for record in sweep.records)
    }
    commits = ", ".join(sorted({str(record.get("commit") or "unknown") for record in sweep.records}))
    seeds = sorted({result.seed or 0 for result in sweep.results})
    cases = ", ".join(sorted({result.case for result in sweep.results}))
    axes = ", ".join(f"`{axis}`" for axis in sweep.axes) or "none"
    ids = "\n".join(f"- `{key}`: `{sweep.metrics[key]['id']}`, {sweep.metrics[key]['unit']}" for key in metrics)
    table, by_case = _tables(found, {key: sweep.metrics[key] for key in metrics})
    return "\n".join([f"# {name}", "", *comment, f"""
- Command: `{command}`
- Commit {commits}; UNet {_unet(sweep.records[0])}
- Hardware: {"; ".join(sorted(hardware))}
- {len(sweep.results)} edits of {cases}; seed{"s" * (len(seeds) > 1)} {", ".join(map(str, seeds))}
- Axes: {axes}

{table}

Means over the cases; ± is the standard deviation of that mean between seeds.

`figure.png`, which the command draws beside this file, shows every clip as a thin line and the mean as a thick one.

{by_case}

Ids and units:

{ids}

{FINDINGS}

{findings}
"""])  # fmt: skip


def study(options: StudyOptions) -> Path:
    """Summarise a sweep into ``out``; returns its README, whose text under :data:`FINDINGS` is kept."""
    from .plots import by_value, save_small

    sweep, out = read_sweep(Path(options.sweep), options.cases), Path(options.out)
    measured = {name for result in sweep.results for name in result.figures}
    metrics = [name for name in options.metrics if name in measured]
    if not metrics:
        raise EvalError(f"metrics={options.metrics}: none was measured; there are {', '.join(sorted(measured))}")
    path, found = out / "README.md", means(sweep, metrics)
    out.mkdir(parents=True, exist_ok=True)
    # Below the page's one generated heading, whatever an earlier version called it.
    before = path.read_text(encoding="utf-8").partition("\n## ")[2].partition("\n")[2].strip() if path.is_file() else ""
    save_small(by_value(found, metrics, sweep.metrics), out / "figure.png")
    facts = {name: sweep.metrics[name] for name in metrics}
    content = {"axes": sweep.axes, "metrics": facts, "means": found}
    write_json(out / "study.json", content)
    path.write_text(_readme(sweep, found, metrics, Path(options.sweep), before or "Not written yet."), encoding="utf-8")
    print(path)
    return path


def _work(options: StudyOptions, _: object) -> None:
    study(options)


main = entry_point("summarise a study", "study/study", _work)

if __name__ == "__main__":
    main()
