"""Run folders -> results: whose edit of which case each one is, and what was measured of it."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .metric import MetricError
from .records import read_json, read_record, read_record_if_any
from .sweep import APART, flat

# Overrides that make no other method: where things lie, which clip and seed it was, who is told. The experiment comes first.
NO_METHOD = re.compile(rf"\+*({'|'.join(APART)}|experiment|hydra|run|backbone\.(path|adapter))\b")
PLACES = ("backbone.path", "backbone.adapter", "reference.segmenter", "experiment")

_SIZE = re.compile(r"\d+x\d+")  # width and height, as Sheet.size has them


@dataclass(frozen=True)
class Result:
    """One edit. ``figures`` are numbers alone; ``edited`` and ``source`` are the clips, for the page."""

    case: str
    method: str
    groups: tuple[str, ...]
    seed: int | None
    figures: dict[str, float]
    folder: Path
    labelled: bool = True  # it says itself which row of which case it is, as the benchmark's edits do
    control: bool = False  # an edit that takes no skill
    options: dict[str, str] = field(default_factory=dict)  # of an edit without a label: dotted key -> JSON, where it is known

    @property
    def edited(self) -> Path:
        return self.folder / "edited.mp4"

    @property
    def source(self) -> Path:
        return self.folder.parents[1] / "source.mp4"


@dataclass
class Collection:
    """All results under some folders; ``metrics``: name -> id, direction (None: none) and unit; ``failed``: as listed."""

    results: list[Result] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)


def find_runs(pattern: str) -> list[Path]:
    """Every folder that holds a ``metrics.json``, under what ``pattern`` names (``**`` is any depth), sorted."""
    return [path.parent for path in _under(pattern, "metrics.json")]


def find_failed(pattern: str) -> list[Path]:
    """Every ``failed.json`` under what ``pattern`` names, at any depth, sorted."""
    return _under(pattern, "failed.json")


def _under(pattern: str, name: str) -> list[Path]:
    places = glob.glob(pattern, recursive=True)  # noqa: PTH207 - an absolute pattern is none of Path's
    return sorted({path for place in places if Path(place).is_dir() for path in Path(place).rglob(name)})


def collect(runs: Iterable[Path], listings: Iterable[Path] = ()) -> Collection:
    """Read what ``runs`` measured, and what the ``listings`` (each a ``failed.json``) say went wrong.

    A figure whose run doesn't tell its id counts as not measured: nobody could say whether it goes with the others.

    Raises:
        MetricError: two runs measured one name under two ids; a file that can't be read or doesn't say what it should.
    """
    made, owners = Collection(), {}
    for run in runs:
        told = read_record(run / "metrics.json")
        about, edits = _part(told, "metrics", run / "metrics.json"), _part(told, "edits", run / "metrics.json")
        _agree(made.metrics, owners, about, run)
        record = read_record_if_any(run / "run.json")
        for name in edits:
            if (run / "edits" / name / "edit.json").is_file():
                numbers = _numbers(_part(edits, name, run / "metrics.json"), about, run / "metrics.json")
                made.results.append(_result(run, name, numbers, _part(record, "config", run / "run.json")))
    for listing in listings:
        made.failed += _failed(listing)
    return made


def _agree(known: dict[str, dict[str, Any]], owners: dict[str, Path], told: dict[str, dict[str, Any]], run: Path) -> None:
    for name, about in told.items():
        if not isinstance(about, dict) or not {"id", "higher_is_better"} <= set(about):
            raise MetricError(f"{run / 'metrics.json'}: {name} has no id or no direction; score the run anew")
        if name in known and known[name]["id"] != about["id"]:
            raise MetricError(f"{run}: {name} is {_apart(about['id'], known[name]['id'], owners[name])}")
        known.setdefault(name, about)
        owners.setdefault(name, run)


def _apart(here: str, there: str, other: Path) -> str:
    """How two ids differ, and what to do about it: where it is the clips' size alone, scoring them again doesn't help."""
    parts = list(zip(here.split("/"), there.split("/"), strict=False))
    differing = [pair for pair in parts if pair[0] != pair[1]]
    if here.count("/") == there.count("/") and len(differing) == 1 and all(map(_SIZE.fullmatch, differing[0])):
        ours, theirs = differing[0]
        return (
            f"measured at {ours}, but at {theirs} in {other}: figures of two sizes make no table; edit all clips at one size"
            " (video.width=... video.height=...), or list them apart"
        )
    return f"{here}, but {other} has {there}: numbers of two kinds make no table; score both anew, or list them apart"


def _numbers(figures: dict[str, Any], about: dict[str, Any], path: Path) -> dict[str, float]:
    found = {key: float(v) for key, v in figures.items() if key in about and isinstance(v, (int, float))}
    if wrong := [key for key, value in found.items() if not math.isfinite(value)]:
        raise MetricError(f"{path}: {wrong[0]} is {found[wrong[0]]}, which has no mean; score the run anew")
    return found


def _result(run: Path, name: str, numbers: dict[str, float], config: dict[str, Any]) -> Result:
    folder = run / "edits" / name
    told = read_record(folder / "edit.json")
    if "benchmark" in told:
        known = _part(told, "benchmark", folder / "edit.json")
        if lacking := [key for key in ("case", "method") if not isinstance(known.get(key), str)]:
            raise MetricError(f"{folder / 'edit.json'}: its benchmark entry names no {' and no '.join(lacking)}")
        group = known.get("group") or []
        groups = (group,) if isinstance(group, str) else tuple(group)
        seed, control = _seed(known.get("seed")), bool(told.get("control"))
        return Result(known["case"], known["method"], groups, seed, numbers, folder, control=control)
    video = _part(config, "video", run / "run.json").get("name") or run.name
    seed = _seed(told.get("seed", config.get("seed")))
    record = read_record_if_any(run / "run.json")
    method = _asked(_part(record, "chosen", run / "run.json"), told)
    return Result(f"{video}/{name}", method, (), seed, numbers, folder, labelled=False, options=_options(record, told))


def _asked(chosen: dict[str, Any], edit: dict[str, Any]) -> str:
    """The row of an ordinary run: its experiment, else ``tave``, then the overrides that make it another method."""
    words = [str(word) for word in (*(chosen.get("overrides") or ()), *(edit.get("overrides") or ()))]
    telling = [word for word in words if not NO_METHOD.match(word)]
    return " ".join([str(chosen.get("experiment") or "tave"), *telling])


def _options(record: dict[str, Any], edit: dict[str, Any]) -> dict[str, str]:
    """All that decides an edit but its clip and seed; nothing where the run hasn't kept it. Weights by hash, not by place."""
    config = record.get("config")
    if not isinstance(config, dict):
        return {}
    found = dict(flat(config | (edit.get("options") or {})))
    found |= {"trainer.precision": (config.get("trainer") or {}).get("precision"), "weights": record.get("weights")}
    return {key: json.dumps(value, sort_keys=True) for key, value in found.items() if key not in PLACES}


def apart(found: Collection) -> Collection:
    """``found`` with rows that don't mix: one that holds several sets of options becomes one for each, told by what differs.

    Raises:
        MetricError: two benchmark folders hold a case of one name; they needn't be the same clip or options.
    """
    roots: dict[str, Path] = {}
    for result in found.results:
        root = result.folder.parents[2]
        if result.labelled and roots.setdefault(result.case, root) != root:
            raise MetricError(
                f"{roots[result.case]} and {root} both hold the case {result.case}: benchmarks aren't averaged, give one folder"
            )
    known: dict[str, dict[str, set[str]]] = {}
    for result in found.results:
        for key, value in result.options.items():
            known.setdefault(result.method, {}).setdefault(key, set()).add(value)
    return replace(found, results=[_told_apart(result, known.get(result.method, {})) for result in found.results])


def _told_apart(result: Result, known: dict[str, set[str]]) -> Result:
    differing = [key for key, values in known.items() if len(values) > 1 or key not in result.options]
    words = [f"{key}={_short(result.options.get(key, 'null'))}" for key in differing if result.options]
    return replace(result, method=" ".join([result.method, *words]))


def _short(value: str) -> str:
    """A value in JSON for a row's name: a long one by a few digits of its hash."""
    return value.replace('"', "") if len(value) < 40 else hashlib.sha256(value.encode()).hexdigest()[:6]


def _seed(told: Any) -> int | None:
    return told if isinstance(told, int) else None


def _failed(path: Path) -> list[dict[str, Any]]:
    """The entries of a ``failed.json``: a list, or an object that holds it as ``failed``."""
    told = read_json(path)
    listed = told.get("failed", []) if isinstance(told, dict) else told
    keys = ("case", "method", "error")
    if not isinstance(listed, list) or not all(isinstance(e, dict) and set(keys) <= set(e) for e in listed):
        raise MetricError(f"{path} must list objects that hold {', '.join(keys)}")
    seeds = [{} if _seed(entry.get("seed")) is None else {"seed": entry["seed"]} for entry in listed]
    return [{key: str(entry[key]) for key in keys} | seed for entry, seed in zip(listed, seeds, strict=True)]


def _part(told: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The object ``told[key]``; an empty one where there is none."""
    found = told.get(key)
    if found is not None and not isinstance(found, dict):
        raise MetricError(f"{path}: {key} must be a JSON object")
    return found or {}
