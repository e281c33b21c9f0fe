"""Run folders -> results: the case and method of each edit, and its figures."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tave.files import read_json
from tave.record import check_record, read_edit, read_metrics, read_run

from . import EvalError

# Options that make no other method: clip, seed, places, and where figures are written.
APART = ("video", "seed", "cache", "logger", "metrics", "trainer")
PLACES = ("backbone.path", "backbone.adapter", "reference.segmenter", "experiment")
NO_METHOD = re.compile(rf"\+*({'|'.join(APART)}|experiment|hydra|run|backbone\.(path|adapter))\b")
# The target's pictures: each clip has its own, so that only a study of one clip compares them.
PICTURES = "video.target_image"


@dataclass(frozen=True)
class Result:
    """One edit, in ``folder``. ``figures`` holds numbers alone."""

    case: str
    method: str
    groups: tuple[str, ...]
    seed: int | None
    figures: dict[str, float]
    folder: Path
    control: bool = False  # an edit that takes no skill
    options: dict[str, Any] | None = None  # by dotted key; None: an edit of a benchmark, which records case and method

    @property
    def edited(self) -> Path:
        """The edited clip."""
        return self.folder / "edited.mp4"

    @property
    def source(self) -> Path:
        """The clip that was edited."""
        return self.folder.parents[1] / "source.mp4"


@dataclass
class Results:
    """Results of some folders; ``metrics``: name -> id, direction, unit; ``failed``: entries of ``failed.json``."""

    results: list[Result] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)


def find(pattern: str, name: str = "metrics.json") -> list[Path]:
    """Every file called ``name`` at any depth of the folders that ``pattern`` matches (``**``: any depth), sorted."""
    places = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path takes no absolute pattern
    return sorted({path for place in places if Path(place).is_dir() for path in Path(place).rglob(name)})


def read_results(measured: Iterable[Path], failures: Iterable[Path] = ()) -> Results:
    """Read ``metrics.json`` files with the records beside them, and ``failed.json``; refuses two ids of one metric."""
    found, origin = Results(), {}
    for path in measured:
        record, run = read_metrics(path.parent), read_run(path.parent)
        facts, edits = record.get("metrics", {}), record.get("edits", {})
        for name, about in facts.items():
            if found.metrics.setdefault(name, about)["id"] != about["id"]:
                other = f"{found.metrics[name]['id']} in {origin[name].parent}"
                remedy = "score both again from clips of one size (video.width, video.height), or list them separately"
                raise EvalError(f"{path.parent}: {name} is {about['id']}, but {other}; {remedy}")
            origin.setdefault(name, path)
        for name, figures in edits.items():
            folder = path.parent / "edits" / name
            if (folder / "edit.json").is_file():
                # A number without an id can't be compared with any other.
                numbers = {key: float(v) for key, v in figures.items() if key in facts and isinstance(v, int | float)}
                found.results.append(_result(folder, numbers, run))
    for path in failures:
        check_record(path.parent, [path.name])
        found.failed += read_json(path)["failed"]
    return found


def _result(folder: Path, numbers: dict[str, float], run: dict[str, Any]) -> Result:
    record, config = read_edit(folder), run.get("config") or {}
    if label := record.get("benchmark"):
        control, groups = bool(record.get("control")), tuple(label.get("group") or ())
        return Result(label["case"], label["method"], groups, label.get("seed"), numbers, folder, control)
    video, chosen = config.get("video") or {}, run.get("chosen") or {}
    words = [str(word) for word in (*(chosen.get("overrides") or ()), *(record.get("overrides") or ()))]
    method = " ".join([str(chosen.get("experiment") or "tave"), *(w for w in words if not NO_METHOD.match(w))])
    options = {key: v for key, v in flat(config | (record.get("options") or {})) if key not in PLACES}
    options["trainer.precision"] = (config.get("trainer") or {}).get("precision")
    options["weights"] = run.get("weights")
    # The files of the edit's target image, without their folders.
    found = ((video.get("edits") or {}).get(folder.name) or video).get("target_image") or ""
    options[PICTURES] = "+".join(Path(path).name for path in ([found] if isinstance(found, str) else found))
    case, seed = f"{video.get('name') or folder.parents[1].name}/{folder.name}", record.get("seed", config.get("seed"))
    return Result(case, method, (), seed, numbers, folder, options=options)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option by its dotted key, without :data:`APART`."""
    for key, value in config.items():
        if isinstance(value, Mapping) and (prefix or key not in APART):
            yield from flat(value, f"{prefix}{key}.")
        elif prefix or key not in APART:
            yield f"{prefix}{key}", value


def split_methods(found: Results) -> Results:
    """``found`` with methods that don't mix options: one with several sets of them becomes one for each set.

    Refuses two benchmarks with a case of one name, which needn't be the same clip.
    """
    roots: dict[str, Path] = {}
    values: dict[str, dict[str, set[str]]] = {}
    for result in found.results:
        root = result.folder.parents[2]
        if result.options is None and roots.setdefault(result.case, root) != root:
            both = f"{roots[result.case]} and {root} both hold the case {result.case}"
            raise EvalError(f"{both}: benchmarks aren't averaged, give one folder")
        for key, value in (result.options or {}).items():
            values.setdefault(result.method, {}).setdefault(key, set()).add(json.dumps(value, sort_keys=True))

    def split(result: Result) -> Result:
        own, words = result.options or {}, [result.method]
        for key, found in values.get(result.method, {}).items():
            if own and key != PICTURES and (len(found) > 1 or key not in own):
                text = json.dumps(own.get(key), sort_keys=True)
                short = text.replace('"', "") if len(text) < 40 else hashlib.sha256(text.encode()).hexdigest()[:6]
                words.append(f"{key}={short}")
        return replace(result, method=" ".join(words))

    return replace(found, results=[split(result) for result in found.results])
