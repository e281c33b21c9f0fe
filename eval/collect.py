"""Run folders -> results: whose edit of which case each one is, and what was measured of it."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.metric import MetricError


@dataclass(frozen=True)
class Result:
    """One edit. ``figures`` are numbers alone; ``edited`` and ``source`` are the clips, for the page."""

    case: str
    method: str
    groups: tuple[str, ...]
    seed: int | None
    figures: dict[str, float]
    folder: Path

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
    failed: list[dict[str, str]] = field(default_factory=list)


def find_runs(pattern: str) -> list[Path]:
    """Every folder that holds a ``metrics.json``, under what ``pattern`` names (``**`` is any depth), sorted."""
    found: set[Path] = set()
    for place in glob.glob(pattern, recursive=True):  # noqa: PTH207 - an absolute pattern is none of Path's
        path = Path(place)
        if path.is_dir():
            found |= {metrics.parent for metrics in path.rglob("metrics.json")}
    return sorted(found)


def collect(runs: Iterable[Path]) -> Collection:
    """Read what runs measured.

    Raises:
        MetricError: two runs measured one name under two ids; a ``metrics.json`` that can't be read.
    """
    made, owners, seen = Collection(), {}, set()
    for run in runs:
        told = _json(run / "metrics.json")
        _agree(made.metrics, owners, told.get("metrics", {}), run)
        config = _json(run / "run.json").get("config", {}) if (run / "run.json").is_file() else {}
        for name, figures in told.get("edits", {}).items():
            if (run / "edits" / name / "edit.json").is_file():
                made.results.append(_result(run, name, figures, config))
        for parent in (run, run.parent):
            listing = parent / "failed.json"
            if listing not in seen and listing.is_file():
                seen.add(listing)
                made.failed += _json(listing).get("failed", [])
    return made


def _agree(known: dict[str, dict[str, Any]], owners: dict[str, Path], told: dict[str, dict[str, Any]], run: Path) -> None:
    for name, about in told.items():
        if name in known and known[name]["id"] != about["id"]:
            raise MetricError(
                f"{run}: {name} is {about['id']}, but {owners[name]} has {known[name]['id']}: numbers of two kinds make no"
                " table; score both anew, or list them apart"
            )
        known.setdefault(name, about)
        owners.setdefault(name, run)


def _result(run: Path, name: str, figures: dict[str, Any], config: dict[str, Any]) -> Result:
    folder = run / "edits" / name
    told = _json(folder / "edit.json")
    known = told.get("benchmark")
    numbers = {key: float(value) for key, value in figures.items() if isinstance(value, (int, float))}
    if known:
        group = known.get("group", [])
        groups = (group,) if isinstance(group, str) else tuple(group)
        return Result(known["case"], known["method"], groups, known.get("seed"), numbers, folder)
    video = (config.get("video") or {}).get("name") or run.name
    return Result(f"{video}/{name}", "tave", (), told.get("seed"), numbers, folder)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MetricError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise MetricError(f"{path} must hold a JSON object")
    return found
