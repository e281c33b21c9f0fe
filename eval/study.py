"""The run folders of a sweep -> a study: README.md with question, command and tables, study.json, figure.png.

python -m tave.train -m experiment=blend_weights
python -m tave.eval.study sweep=outputs/studies/blend_weights out=experiments/blend_weights
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from tave.cli import entry_point
from tave.config import CONF, StudyOptions
from tave.files import whole_file, write_json
from tave.record import read_run

from . import EvalError
from .records import mapping_in, name_in, number_in, read_metrics
from .runs import PICTURES, Result, find, read_results
from .tables import ARROWS, by_method, code, escape, markdown_table

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
    runs = {path: read_run(path.parent) for path in find(str(folder))}
    names = {path: _clip(path, run) for path, run in runs.items()}
    runs = {path: run for path, run in runs.items() if fnmatch(names[path], cases)}
    found = read_results(runs)
    results = []
    for path in runs:
        own, more = [r for r in found.results if r.folder.parents[1] == path.parent], _run_figures(path)
        results += [replace(r, case=names[path] if len(own) == 1 else r.case, figures=more | r.figures) for r in own]
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


def _clip(path: Path, run: dict[str, Any]) -> str:
    """The name of a run's clip."""
    beside = path.with_name("run.json")
    return name_in(mapping_in(mapping_in(run, "config", beside), "video", beside), "name", beside)


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
    return (0, value) if isinstance(value, int | float) and value == value else (2, str(value))


def _run_figures(path: Path) -> dict[str, float]:
    record = read_metrics(path)
    stages = mapping_in(record, "stages", path)
    parts = [mapping_in(stages, name, path) for name in ("masking", "sampling")]
    spent = sum(number_in(part, key, path) or 0.0 for part in parts for key in ("seconds", "remembered"))
    known = {"reconstruction_psnr": number_in(record, "reconstruction_psnr", path), "edit_seconds": spent or None}
    return {key: value for key, value in known.items() if value is not None}  # as if nothing was cached


def _unet(record: dict[str, Any]) -> str:
    weights = record.get("weights")
    files = weights.items() if isinstance(weights, dict) else ()
    hashes = sorted(str(sha) for file, sha in files if file.partition("/")[0] == "unet")
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

    heads = [escape(name) + ARROWS[about["higher_is_better"]] for name, about in facts.items()]
    body = [[escape(v), *(shown(v, name) for name in facts)] for v in dict.fromkeys(each["value"] for each in found)]
    first = next(iter(facts))
    measured = [each for each in found if each["metric"] == first]
    cases = sorted({name for each in measured for name in each["cases"]})
    lines = [[escape(c), *(f"{e['cases'][c]:.4g}" if c in e["cases"] else "" for e in measured)] for c in cases]
    by_case = markdown_table([escape(first), *(escape(each["value"]) for each in measured)], lines)
    return "\n".join(markdown_table(["value", *heads], body)), "\n".join(by_case)


def _question(folder: Path) -> tuple[str, list[str], str]:
    """The study's name, the comment of its file and the command, from the sweep's ``multirun.yaml``."""
    try:
        record = yaml.safe_load((folder / "multirun.yaml").read_text(encoding="utf-8"))
        name = record["hydra"]["runtime"]["choices"].get("experiment") or folder.name
        words = [str(word) for word in record["hydra"]["overrides"]["task"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        return folder.name, [], "unknown"
    file = CONF / "experiment" / f"{name}.yaml"
    known = file.parent == CONF / "experiment" and file.is_file()
    lines = file.read_text(encoding="utf-8").splitlines() if known else []
    comment = [line.removeprefix("#").strip() for line in lines if line.startswith("# ") and "@package" not in line]
    return str(name), comment, " ".join(["python -m tave.train -m", *map(shlex.quote, words)])


def _readme(sweep: Sweep, found: list[dict[str, Any]], metrics: list[str], folder: Path, findings: str) -> str:
    name, comment, command = _question(folder)
    hardware = {
        f"{h.get('machine', '?')}, threads: {h.get('threads', '?')}, {'a GPU' if h.get('cuda') else 'no GPU'}"
        for h in (mapping_in(record, "hardware", folder) for record in sweep.records)
    }
    commits = ", ".join(sorted({str(record.get("commit") or "unknown") for record in sweep.records}))
    seeds = sorted({result.seed or 0 for result in sweep.results})
    cases = ", ".join(sorted({result.case for result in sweep.results}))
    axes = ", ".join(map(code, sweep.axes)) or "none"
    facts = {key: sweep.metrics[key] for key in metrics}
    ids = "\n".join(
        f"- {code(key)}: {code(each['id'])}, {escape(str(each.get('unit')))}" for key, each in facts.items()
    )
    table, by_case = _tables(found, facts)
    return "\n".join([f"# {escape(name)}", "", *comment, f"""
- Command: {code(command)}
- Commit {escape(commits)}; UNet {escape(_unet(sweep.records[0]))}
- Hardware: {escape("; ".join(sorted(hardware)))}
- {len(sweep.results)} edits of {escape(cases)}; seed{"s" * (len(seeds) > 1)} {", ".join(map(str, seeds))}
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
    try:
        # Below the page's one generated heading, whatever an earlier version called it.
        written = path.read_text(encoding="utf-8") if path.is_file() else ""
        before = written.partition("\n## ")[2].partition("\n")[2].strip()
    except UnicodeDecodeError as error:
        raise EvalError(f"{path} is no UTF-8 text, and what is written in it is to be kept: convert it") from error
    save_small(by_value(found, metrics, sweep.metrics), out / "figure.png")
    facts = {name: sweep.metrics[name] for name in metrics}
    content = {"axes": sweep.axes, "metrics": facts, "means": found}
    write_json(out / "study.json", content)
    text = _readme(sweep, found, metrics, Path(options.sweep), before or "Not written yet.")
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    print(path)
    return path


def _work(options: StudyOptions, _: object) -> None:
    study(options)


main = entry_point("summarise a study", "study/study", _work)

if __name__ == "__main__":
    main()
