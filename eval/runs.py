"""Run folders -> results: the case and method of each edit, and its figures."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tave.files import FileError, read_json
from tave.record import check_links, check_record, network_clip, read_edit, read_run

from . import EvalError
from .records import is_number, mapping_in, name_in, printable, read_metrics, seed_in, text_in, texts_in

log = logging.getLogger(__name__)

# Options that do not define a method: clip, seed, places, and where figures are written.
NO_METHOD_KEYS = ("video", "seed", "cache", "logger", "metrics", "trainer", "report", "quiet", "json")
PLACES = ("backbone.path", "backbone.adapter", "reference.segmenter", "experiment")
NO_METHOD = re.compile(rf"\+*({'|'.join(NO_METHOD_KEYS)}|experiment|hydra|run|backbone\.(path|adapter))\b")
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
        """The edited clip, at the size of the source."""
        return network_clip(self.folder)

    @property
    def source(self) -> Path:
        """The clip that was edited."""
        return self.folder.parents[1] / "source.mp4"


@dataclass
class Results:
    """Results of some folders.

    ``metrics``: name -> id, direction, unit; ``failed``: entries of ``failed.json``; ``left_out``: a line for each file
    or figure that can't be read.
    """

    results: list[Result] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def leave_out(self, reason: object) -> None:
        """Note and log what is left out."""
        self.left_out.append(printable(" ".join(str(reason).split())))
        log.warning("left out: %s", self.left_out[-1])


def find(pattern: str, name: str = "metrics.json") -> list[Path]:
    """Every file called ``name`` at any depth of the folders that ``pattern`` matches (``**``: any depth), sorted."""
    places = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path takes no absolute pattern
    return sorted({path for place in places if Path(place).is_dir() for path in Path(place).rglob(name)})


def read_results(measured: Iterable[Path], failures: Iterable[Path] = ()) -> Results:
    """Read ``metrics.json`` files with the records beside them, and ``failed.json``; refuses two ids of one metric.

    A file that can't be read is named and left out, and so is a figure that is no number.
    """
    found: Results = Results()
    origin: dict[str, Path] = {}
    for path in measured:
        try:
            check_links(path.parent)
            record, run = read_metrics(path), read_run(path.parent)
        except (FileError, EvalError) as error:
            found.leave_out(error)
            continue
        facts = {printable(name): about for name, about in record["metrics"].items()}
        _add_metrics(found, facts, path, origin)
        for name, figures in record["edits"].items():
            folder = path.parent / "edits" / name
            if (folder / "edit.json").is_file():
                # A number without an id can't be compared with any other.
                values = {printable(key): value for key, value in figures.items() if value is not None}
                numbers = {key: value for key, value in values.items() if key in facts}
                # A metric may be a list, such as a shift: it is no number to compare.
                if odd := [key for key, value in numbers.items() if not (is_number(value) or isinstance(value, list))]:
                    found.leave_out(f"{path}: {', '.join(odd)} of {name}: no number")
                try:
                    numbers = {key: float(value) for key, value in numbers.items() if is_number(value)}
                    found.results.append(_result(folder, numbers, run))
                except (FileError, EvalError) as error:
                    found.leave_out(error)
    for path in failures:
        try:
            found.failed += _failures(path)
        except (FileError, EvalError) as error:
            found.leave_out(error)
    return found


def _add_metrics(found: Results, facts: Mapping[str, dict[str, Any]], path: Path, origin: dict[str, Path]) -> None:
    for name, about in facts.items():
        if found.metrics.setdefault(name, about)["id"] != about["id"]:
            other = f"{found.metrics[name]['id']} in {origin[name].parent}"
            remedy = "score both again from clips of one size (video.width, video.height), or list them separately"
            raise EvalError(f"{path.parent}: {name} is {about['id']}, but {other}; {remedy}")
        origin.setdefault(name, path)


def _failures(path: Path) -> list[dict[str, Any]]:
    check_record(path.parent, [path.name])
    entries = read_json(path).get("failed")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise EvalError(f"{path}: failed is no list of failures")
    made = []
    for entry in entries:
        names = {key: name_in(entry, key, path) for key in ("case", "method")}
        made.append(entry | names | {"error": printable(text_in(entry, "error", path) or "unknown")})
    return made


def _result(folder: Path, numbers: dict[str, float], run: dict[str, Any]) -> Result:
    path, beside = folder / "edit.json", folder.parents[1] / "run.json"
    record, config = read_edit(folder), mapping_in(run, "config", beside)
    if label := mapping_in(record, "benchmark", path):
        control, groups = bool(record.get("control")), tuple(map(printable, texts_in(label, "group", path)))
        case, method = name_in(label, "case", path), name_in(label, "method", path)
        return Result(case, method, groups, seed_in(label, path), numbers, folder, control)
    video, chosen = mapping_in(config, "video", beside), mapping_in(run, "chosen", beside)
    words = [*texts_in(chosen, "overrides", beside), *texts_in(record, "overrides", path)]
    experiment = text_in(chosen, "experiment", beside) or "tave"
    method = printable(" ".join([experiment, *(word for word in words if not NO_METHOD.match(word))]))
    own = mapping_in(record, "options", path)
    options = {key: v for key, v in flat(config | own) if key not in PLACES}
    options["trainer.precision"] = mapping_in(config, "trainer", beside).get("precision")
    options["weights"] = run.get("weights")
    # The files of the edit's target image, without their folders.
    edits = mapping_in(video, "edits", beside)
    found = texts_in(mapping_in(edits, folder.name, beside) or video, "target_image", beside)
    options[PICTURES] = "+".join(Path(each).name for each in found)
    clip = printable(text_in(video, "name", beside) or folder.parents[1].name)
    seed = seed_in(record if "seed" in record else config, path)
    return Result(f"{clip}/{printable(folder.name)}", method, (), seed, numbers, folder, options=options)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option by its dotted key, without :data:`NO_METHOD_KEYS`."""
    for key, value in config.items():
        if isinstance(value, Mapping) and (prefix or key not in NO_METHOD_KEYS):
            yield from flat(value, f"{prefix}{key}.")
        elif prefix or key not in NO_METHOD_KEYS:
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
