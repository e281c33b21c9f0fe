"""The record of a run folder: the SHA-256 of what lies in it, and what a later command may take from its files.

``SHA256SUMS`` in the run folder and in each of its edits is in the format of ``sha256sum -c``. What a file says is
data: :func:`recorded` takes a closed list of typed values from ``run.json``, and nothing else of it decides about a
later command.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from tave import config
from tave.config import PACKAGE, slug
from tave.files import FileError, file_digest, read_json, whole_file, write_json
from tave.locks import UPDATE, ClaimedError, claimed

log = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
REPORT = "report.html"
# The files of a run folder, beside its edits. Nothing reads logs/ or the report.
PRODUCTS = ("run.json", "metrics.json", "source.mp4", "round_trip.mp4", "tuned.safetensors", "tuned.json")
PRODUCTS += ("trajectory.safetensors", "true_region.mp4", "failed.json", "LICENSE-MODEL.txt", REPORT)
REMEDY = "copy it again from where it was made, or delete it and give the command again that made it"


# ---- SHA256SUMS ------------------------------------------------------------------------------------------------------


def read_sums(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files in the record of ``folder``; empty if it has none."""
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} can't be read: {REMEDY}") from error
    found = {}
    for line in lines:
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if match is None or not _inside(match[2]):
            raise FileError(f"{path} is damaged at {line[:80]!r}: {REMEDY}")
        found[match[2]] = match[1]
    return found


def _inside(name: str) -> bool:
    """Whether a name from a file stays in its folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def check_record(folder: Path, names: Iterable[str] | None = None) -> None:
    """Raise :class:`FileError`, naming the file, for one of ``names`` whose content is not the recorded one.

    Without ``names`` that is every file of the record, and a missing one is refused too. A file that the record doesn't
    list has nothing to be compared with.
    """
    sums = read_sums(folder)
    for name in sums if names is None else [name for name in names if name in sums]:
        digest: str | None = sums[name]
        while digest and (wrong := _compare(folder, name, digest)) and (names is None or (folder / name).exists()):
            before, digest = digest, read_sums(folder).get(name)
            if digest == before:  # else another process has written the file in the meantime
                raise FileError(wrong)


def differences(folder: Path) -> list[str]:
    """A line for each recorded file of ``folder`` that is missing or not as recorded."""
    return [wrong for name, digest in read_sums(folder).items() if (wrong := _compare(folder, name, digest))]


def _compare(folder: Path, name: str, digest: str) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"{path} is missing: {REMEDY}"
    if file_digest(path) != digest:
        return f"{path} has changed since it was made (its SHA-256 is not that in {SUMS}): {REMEDY}"
    return None


def unlisted(folder: Path, whole: bool = False) -> list[str]:
    """The files of ``folder`` that its record lacks: a run's products, or ``whole``: all files."""
    return sorted((_files(folder) if whole else _products(folder)) - read_sums(folder).keys())


def write_record(folder: Path) -> None:
    """Record every file below ``folder``."""
    _write(folder, {name: file_digest(folder / name) for name in _files(folder)})


def begin_record(folder: Path) -> None:
    """Give the run ``folder`` a record if it has none."""
    if not (folder / SUMS).is_file():
        _write(folder, {name: file_digest(folder / name) for name in _products(folder)})


@contextmanager
def rewriting(folder: Path, *names: str) -> Iterator[None]:
    """Write the files ``names`` of ``folder`` in the block, and have their digests in its record afterwards.

    They leave the record before: a process that dies in the block leaves them unlisted, not at odds with the record,
    and the next command that writes here lists them. A folder without a record stays without.
    """
    if not (folder / SUMS).is_file():
        yield
        return
    _update(folder, lambda: dict.fromkeys(names))
    try:
        yield
    except BaseException:
        with suppress(FileError):
            _update(folder, lambda: _digests(folder, names))
        raise
    _update(folder, lambda: _digests(folder, names))


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str | None]:
    """The digests of ``names``, and of this folder's products that the record lacks and nobody writes."""
    due = {*names, *(name for name in unlisted(folder) if not _is_claimed(folder / name))}
    return {name: file_digest(folder / name) if (folder / name).is_file() else None for name in due}


def _is_claimed(path: Path) -> bool:
    try:
        with claimed(path):
            return False
    except ClaimedError:
        return True


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != SUMS}


def _products(folder: Path) -> set[str]:
    edits = {path.relative_to(folder).as_posix() for path in folder.glob(f"edits/[!.]*/{SUMS}")}
    return edits | {name for name in PRODUCTS if (folder / name).is_file()}


def _update(folder: Path, changes: Callable[[], Mapping[str, str | None]]) -> None:
    """Digests are taken by ``changes`` under the claim: older than another process's, they would replace those."""
    with claimed(folder / SUMS, UPDATE):
        before = read_sums(folder)
        after = {name: digest for name, digest in {**before, **changes()}.items() if digest is not None}
        if after != before:
            _write(folder, after)


def _write(folder: Path, sums: Mapping[str, str]) -> None:
    text = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    with whole_file(folder / SUMS) as waiting:
        waiting.write_text(text, encoding="utf-8")


def check_links(folder: Path) -> None:
    """Raise :class:`FileError` for a symbolic link in ``folder`` that leads out of it, and for pipes and devices.

    wandb links the log of its helper process in each of its folders, which have new names and are not read: left alone.
    """
    root = os.path.realpath(folder)
    for place, folders, files in os.walk(root):
        for path in (os.path.join(place, name) for name in (*folders, *files)):  # noqa: PTH118 - faster, and no object
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:  # another process's temporary, gone in the meantime
                continue
            target = os.path.realpath(path) if stat.S_ISLNK(mode) else path
            wandb = place.startswith(os.path.join(root, "logs", "wandb", "")) and os.path.isfile(path)  # noqa: PTH113, PTH118
            if not wandb and os.path.commonpath([root, target]) != root:
                raise FileError(f"{path} is a link to {target}, outside of the run folder: replace it by a copy")
            if not (stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise FileError(f"{path} is neither a file nor a folder: remove it")


# ---- metrics.json ----------------------------------------------------------------------------------------------------


def read_metrics(folder: Path) -> dict[str, Any]:
    """The ``metrics.json`` of a run folder, empty if there is none; its edits, metrics, keys and stages are dicts.

    Raises :class:`FileError` if it has changed, for NaN and infinity, and for an edit's name that is no folder name.
    """
    path, again = folder / "metrics.json", "delete it and score again with python -m tave.eval.score run=FOLDER"
    if not path.is_file():
        return {}
    check_record(folder, [path.name])
    found = read_json(path, again)
    if odd := [key for key, value in _entries(found) if isinstance(value, float) and not math.isfinite(value)]:
        raise FileError(f"{path}: {odd[0]} is not finite: {again}")
    for part in ("edits", "metrics", "keys", "stages"):
        entries = found.get(part, {})
        if not isinstance(entries, dict) or (
            part != "keys" and not all(isinstance(each, dict) for each in entries.values())
        ):
            raise FileError(f"{path}: {part} is no list of figures by name: {again}")
    if strange := [name for name in found.get("edits", {}) if slug(name) != name]:
        raise FileError(f"{path}: {strange[0]!r} is no edit's name, which is that of its folder: {again}")
    return found


@contextmanager
def changed_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield :func:`read_metrics` to be changed in the block, one process after another; written if it differs."""
    with claimed(folder / "metrics.json", UPDATE):
        content = read_metrics(folder)
        before = copy.deepcopy(content)
        yield content
        if content != before:
            with rewriting(folder, "metrics.json"):
                write_json(folder / "metrics.json", content)


# ---- run.json --------------------------------------------------------------------------------------------------------

# All of a run's options that a later command takes from its record: what an edit depends on. Loggers, cache, the other
# arguments of the trainer and every path but those of weights are the command's own.
TAKEN: dict[str, type] = {
    "backbone": config.BackboneOptions,
    "condition": config.ConditionOptions,
    "reference": config.ReferenceOptions,
    "inflation": config.InflationOptions,
    "window": config.WindowOptions,
    "tuning": config.TuningOptions,
    "inversion": config.InversionOptions,
    "mask": config.MaskOptions,
    "correction": config.CorrectionOptions,
    "sampler": config.SamplerOptions,
    "memory": config.MemoryOptions,
    "seed": int,
    "compile": bool,
}
VIDEO = {**get_type_hints(config.ReadOptions), "name": str, "source_prompt": str}
SHIPPED = PACKAGE / "roadside" / "weights" / "backbone"


def read_run(folder: Path) -> dict[str, Any]:
    """The ``run.json`` of a run folder, empty if there is none; ``config``, ``chosen`` and ``weights`` are dicts."""
    path = folder / "run.json"
    if not path.is_file():
        return {}
    check_record(folder, [path.name])
    found = read_json(path, "tune again with tave.train")
    dicts = {key: value if isinstance(value := found.get(key), dict) else {} for key in ("config", "chosen", "weights")}
    return found | dicts


def read_edit(folder: Path) -> dict[str, Any]:
    """The ``edit.json`` of an edit's folder."""
    check_record(folder, ["edit.json"])
    return read_json(folder / "edit.json", "make the edit again")


def network_clip(edit: Path) -> Path:
    """The clip of the folder of an ``edit`` at the network's size, that of ``source.mp4``: what metrics compare."""
    path = edit / "network.mp4"
    return path if path.is_file() else edit / "edited.mp4"


def view_note(edit: Path, record: Mapping[str, Any]) -> str | None:
    """For people: the part of the frames that an ``edit``'s clips at the network's size show, by its ``edit.json``.

    None if they show the frames as they are, or if it isn't recorded.
    """
    try:
        (wide, high), (width, height) = (map(int, record[key]) for key in ("source_size", "network_size"))
        left, top, across, down = (round(side) for side in record["crop"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if (width, height) == (wide, high):
        return None
    note = f"Shown: {across}x{down} px at {left},{top} of frames of {wide}x{high}, as the network's {width}x{height}."
    return f"{note} edited.mp4 has the whole frames." if (edit / "network.mp4").is_file() else note


def recorded(folder: Path) -> dict[str, Any]:
    """What an edit in the run ``folder`` takes from its ``run.json``: plain values of the right types, without edits.

    Raises :class:`FileError`, which names the file and the remedy, for a value that can't be taken.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise FileError(f"{folder}: no finished run (run.json is missing); give the folder that tave.train printed")
    record = read_run(folder)
    given = record["config"]
    if not isinstance(given.get("video"), dict):
        raise FileError(f"{path} contains no configuration: tune again with tave.train")
    if named := _classes(given):
        log.warning("%s: %s left out, no file chooses what is run: give it on the command line", path, ", ".join(named))
    found = {key: taken(path, key, given[key], kind) for key, kind in TAKEN.items() if key in given}
    video = {key: given["video"][key] for key in VIDEO if key in given["video"]}
    found["video"] = {key: _typed(path, f"video.{key}", value, VIDEO[key]) for key, value in video.items()}
    found["video"]["path"] = str(folder / "source.mp4")  # what was read of the clip
    trainer, metrics = (value if isinstance(value := given.get(key), dict) else {} for key in ("trainer", "metrics"))
    if "precision" in trainer:
        found["trainer"] = {"precision": _typed(path, "trainer.precision", trainer["precision"], str)}
    found["metrics"] = _measuring(path, metrics)
    keep_places(found, record)
    return found


def taken(path: Path, group: str, value: Any, kind: type) -> Any:
    """An option, or a group of options of the class ``kind``, out of a file; refuses unknown keys and other types."""
    if not issubclass(kind, config.Options):
        return _typed(path, group, value, kind)
    hints = get_type_hints(kind)
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, dict) or (strange := sorted(value.keys() - known)):
        what = f"{group}.{strange[0]} is unknown" if isinstance(value, dict) else f"{group} is no group of options"
        raise FileError(f"{path}: {what}, recorded by another version of tave: tune again")
    return {key: _typed(path, f"{group}.{key}", each, hints[key]) for key, each in value.items()}


def _typed(path: Path, key: str, value: Any, hint: Any) -> Any:
    if not _fits(value, hint):
        raise FileError(f"{path}: {key}={str(value)[:60]!r} can't be taken from a file: tune again with tave.train")
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON has the type ``hint``."""
    inner = get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(k, str) and _fits(v, inner[1]) for k, v in value.items())
    if inner:
        return any(_fits(value, each) for each in inner)
    if hint is Any:  # the hashes of a part by precision
        return value is None or _fits(value, str) or _fits(value, dict[str, str])
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, NoneType if hint is None else hint)


def _classes(tree: Any) -> list[str]:
    """The keys of Hydra's in a tree of plain values, by which it would make objects: ``_target_`` and its like."""
    return [key for key, _ in _entries(tree) if key.rpartition(".")[2].startswith("_")]


def _entries(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every value in a tree of dicts and lists by its dotted key."""
    waiting = [("", tree)]
    while waiting:
        prefix, node = waiting.pop()
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield f"{prefix}{key}", value
            if isinstance(value, dict | list):
                waiting.append((f"{prefix}{key}.", value))


def _measuring(path: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What of the metrics' options is taken: names alone, since a folder of networks is the command's to choose."""
    found = {"enabled": metrics["enabled"]} if isinstance(metrics.get("enabled"), bool) else {}
    for key in ("judge", "clip"):
        value = metrics.get(key)
        named = isinstance(value, str) and re.fullmatch(r"[\w-]+(:[\w-]+)?", value) and not Path(value).exists()
        if value is None or value in ("shipped", "judge") or (key == "clip" and named):
            found |= {key: value} if key in metrics else {}
        else:
            log.warning("%s: metrics.%s=%s left out: give it on the command line", path, key, str(value)[:60])
    return found


def keep_places(found: dict[str, Any], record: Mapping[str, Any]) -> None:
    """Leave out the place of a segmentation network that isn't the recorded one; find the package's own weights here.

    Those of the backbone are compared with the tuned weights' record before they are read.
    """
    backbone, reference = found.get("backbone", {}), found.get("reference", {})
    if backbone.get("path") and Path(backbone["path"]).parts[-3:] == SHIPPED.parts[-3:]:
        backbone["path"] = str(SHIPPED)
    digests = record.get("segmenter")
    if place := reference.get("segmenter"):
        from tave.backbone.files import local_copy

        here = local_copy(place) if reference.get("matte") == "segmented" else None
        if here is None or not isinstance(digests, dict) or not same_files(here, digests):
            reference["segmenter"] = None


def same_files(folder: Path, digests: Mapping[str, Any]) -> bool:
    """Whether ``folder`` holds files of all these names and SHA-256, at least one."""
    return bool(digests) and all(
        _inside(name) and (folder / name).is_file() and file_digest(folder / name) == digest
        for name, digest in digests.items()
    )
