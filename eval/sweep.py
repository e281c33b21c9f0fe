"""Run folders of a sweep, read back: which options differed, and what was measured under each of their values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .records import RunError, read_record, read_record_if_any

# Not axes: which clip and seed it was, and where things lie.
APART = ("video", "seed", "cache", "logger", "metrics", "trainer")
# The target's pictures: every clip has its own, so that they are an axis only within a clip.
PICTURES = "video.target_image"
# Measured of the run and not of an edit; name -> what metrics.json says of the others.
_OF_THE_RUN = {
    "reconstruction_psnr": {"id": "reconstruction_psnr/-/whole frames/clip/v1", "higher_is_better": True, "unit": "dB"},
    "edit_seconds": {"id": "edit_seconds/-/masking, placing and sampling/clip/v2", "higher_is_better": False, "unit": "s"},
}


@dataclass(frozen=True)
class Outcome:
    """One edit. ``case``: its clip, with the edit's name if its run made several.

    ``options``: every option of its run, by its dotted key; ``figures``: what was measured, numbers alone.
    ``edit``: its folder.
    """

    case: str
    seed: int
    options: dict[str, Any]
    figures: dict[str, float]
    edit: Path


@dataclass
class Sweep:
    """All outcomes; ``metrics``: name -> id, direction and unit; ``commits`` and ``hardware``: each that a run names."""

    outcomes: list[Outcome] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    commits: set[str] = field(default_factory=set)
    hardware: set[str] = field(default_factory=set)
    weights: set[str] = field(default_factory=set)

    @property
    def axes(self) -> list[str]:
        """The options that differ between runs; which picture it was, if one clip was shown several."""
        keys = dict.fromkeys(key for outcome in self.outcomes for key in outcome.options)
        return [key for key in keys if self._differs(key)]

    def _differs(self, key: str) -> bool:
        values: dict[str, set[str]] = {}
        for outcome in self.outcomes:
            values.setdefault(outcome.case if key == PICTURES else "", set()).add(json.dumps(outcome.options.get(key)))
        return any(len(found) > 1 for found in values.values())

    def value_of(self, outcome: Outcome) -> str:
        """The values of the axes, in words; an axis is called by its last name."""
        values = (f"{key.rpartition('.')[2]}={json.dumps(outcome.options.get(key))}" for key in self.axes)
        return ", ".join(value.replace('"', "") for value in values) or "as it is"

    @property
    def values(self) -> list[str]:
        """Each value, numbers in their order."""
        found = sorted(self.outcomes, key=lambda outcome: [_rank(outcome.options.get(key)) for key in self.axes])
        return list(dict.fromkeys(self.value_of(outcome) for outcome in found))


def _rank(value: Any) -> tuple[Any, ...]:
    if isinstance(value, list):
        return (1, [_rank(part) for part in value])
    return (0, float(value)) if isinstance(value, (int, float)) else (2, str(value))


def read_sweep(folder: Path, cases: str = "*") -> Sweep:
    """Read every finished run below ``folder`` whose clip's name matches ``cases``.

    Raises:
        RunError: there is none; two runs measured one name under two ids, or used two backbones.
    """
    found = Sweep()
    for path in sorted(folder.rglob("run.json")):
        record, told = read_record(path), read_record_if_any(path.parent / "metrics.json")
        name = str(record["config"]["video"]["name"])
        if not fnmatch(name, cases) or not told.get("edits"):
            continue
        for metric, about in (_OF_THE_RUN | told.get("metrics", {})).items():
            if found.metrics.setdefault(metric, about)["id"] != about["id"]:
                raise RunError(f"{path.parent}: {metric} is {about['id']}, elsewhere {found.metrics[metric]['id']}: score anew")
        options, more = dict(flat(record["config"])), _of_the_run(told)
        for edit, figures in told["edits"].items():
            case = name if len(told["edits"]) == 1 else f"{name}/{edit}"
            shown = options | {PICTURES: _pictures(record["config"]["video"], edit)}
            numbers = more | {key: float(value) for key, value in figures.items() if isinstance(value, (int, float))}
            found.outcomes.append(Outcome(case, int(record["seed"]), shown, numbers, path.parent / "edits" / edit))
        found.commits.add(record.get("commit") or "unknown")
        found.hardware.add(_hardware(record.get("hardware", {})))
        unet = sorted(sha for file, sha in record.get("weights", {}).items() if file.partition("/")[0] == "unet")
        found.weights.add("+".join(sha[:12] for sha in unet) or "unknown")
    if not found.outcomes:
        raise RunError(f"sweep={folder}: no measured run of {cases} in it; run python -m tave.train -m experiment=...")
    if len(found.weights) > 1:
        raise RunError(f"sweep={folder}: its runs used UNets {', '.join(sorted(found.weights))}; delete the older runs, go on")
    return found


def _pictures(video: Mapping[str, Any], edit: str) -> str:
    """The files of an edit's target image, without their folders."""
    told = video.get("edits", {}).get(edit, video).get("target_image") or ""
    return "+".join(Path(path).name for path in ([told] if isinstance(told, str) else told))


def _of_the_run(told: dict[str, Any]) -> dict[str, float]:
    stages = told.get("stages", {})
    parts = [stages[name] for name in ("masking", "placing", "sampling") if name in stages]
    spent = sum(float(part["seconds"]) + float(part.get("remembered", 0)) for part in parts)  # as if nothing had been known
    known = {"reconstruction_psnr": told.get("reconstruction_psnr"), "edit_seconds": spent or None}
    return {key: float(value) for key, value in known.items() if value is not None}


def _hardware(told: dict[str, Any]) -> str:
    return f"{told.get('machine', '?')}, {told.get('threads', '?')} threads, {'a GPU' if told.get('cuda') else 'no GPU'}"


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a run by its dotted key, but for :data:`APART`."""
    for key, value in config.items():
        if not prefix and key in APART:
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
