"""A run folder as the values that its report shows."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from tave.cli import compose_config
from tave.config import WHOLE, EditingOptions, TrainOptions
from tave.files import read_json
from tave.keys import options_of
from tave.record import check_record, network_clip, read_edit, read_metrics, read_run
from tave.scratch import Scratch
from tave.video import Clip, read_clip

# Options that are inputs or places, shown elsewhere or of no interest here.
UNSHOWN = ("video.edits", "video.target_image", "video.target_prompt", "video.matte", "video.mask", "video.edit")
UNSHOWN += ("backbone.sha256", "backbone.knows", "backbone.mirrors", "cache", "report", "quiet", "json")


@dataclass(frozen=True)
class Change:
    """An option that differs from its ``usual`` value, and its meaning."""

    key: str
    usual: Any
    value: Any
    meaning: str


@dataclass(frozen=True)
class EditReport:
    """One edit: its folder, ``edit.json``, figures by metric, clips `f 3 H W`, and options that differ from the run."""

    folder: Path
    record: dict[str, Any]
    figures: dict[str, Any]
    frames: Tensor
    mask: Tensor
    changes: list[Change]

    @property
    def name(self) -> str:
        """The edit's name, that of its folder."""
        return self.folder.name


@dataclass(frozen=True)
class RunReport:
    """A run: ``run.json``, ``metrics.json``, the source clip, and what the tuning's steps lost."""

    folder: Path
    record: dict[str, Any]
    metrics: dict[str, Any]
    source: Clip
    losses: list[float]
    changes: list[Change]
    edits: list[EditReport]


def read_report(folder: Path) -> RunReport:
    """Read what the report of a run shows; the edit that was made last comes first.

    Raises ValueError, in one line, for a file that has changed since it was made or can't be read.
    """
    record, metrics = read_run(folder), read_metrics(folder)
    check_record(folder, ("source.mp4", "tuned.json"))
    tuned = read_json(folder / "tuned.json") if (folder / "tuned.json").is_file() else {}
    homes = [path.parent for path in folder.glob("edits/[!.]*/edit.json")]
    scratch = Scratch(folder)  # it is written there
    edits = sorted(homes, key=lambda home: ((home / "edit.json").stat().st_mtime_ns, home.name), reverse=True)
    usual = OmegaConf.to_container(compose_config("train"), resolve=True, throw_on_missing=False)
    return RunReport(
        folder,
        record,
        metrics,
        read_clip(folder / "source.mp4", WHOLE, scratch=scratch),
        numbers(tuned.get("losses")),
        _changes(usual, record["config"], TrainOptions),
        [_edit(home, record["config"], metrics.get("edits", {}), scratch) for home in edits],
    )


def _edit(home: Path, config: Mapping[str, Any], figures: Mapping[str, Any], scratch: Scratch) -> EditReport:
    check_record(home)
    record = read_edit(home)
    frames, mask = (read_clip(path, WHOLE, scratch=scratch).frames for path in (network_clip(home), home / "mask.mp4"))
    own = record.get("options") if isinstance(record.get("options"), dict) else {}
    return EditReport(home, record, figures.get(home.name, {}), frames, mask, _changes(config, own, EditingOptions))


def _changes(usual: Any, values: Any, kind: type) -> list[Change]:
    """The options of the class ``kind`` whose value is not the usual one."""
    found = []
    for key, entry in options_of(kind):
        before, after = at(usual, key), at(values, key)
        if key not in UNSHOWN and after is not None and before != after:
            found.append(Change(key, before, after, entry.metadata["help"]))
    return found


def at(tree: Any, key: str) -> Any:
    """The value of a dotted key in a tree of plain values, None if there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def numbers(values: Any) -> list[float]:
    """A list of finite numbers out of a file, empty if it is none."""
    good = isinstance(values, list) and all(type(each) in (int, float) and abs(each) < 1e30 for each in values)
    return [float(each) for each in values] if good else []


def texts(values: Any) -> list[str]:
    """The texts of a list out of a file."""
    return [each for each in values if isinstance(each, str)] if isinstance(values, list) else []


def commands(run: RunReport) -> list[str]:
    """The command that made the run, then that of each further edit; without those that Python made."""
    chosen = run.record["chosen"]
    found = [_command("tave.train", chosen["overrides"])] if isinstance(chosen.get("overrides"), list) else []
    for edit in reversed(run.edits):
        if isinstance(words := edit.record.get("overrides"), list):
            found.append(_command("tave.edit", [f"run={run.folder}", *words]))
    return found


def _command(module: str, words: Iterable[Any]) -> str:
    return shlex.join(["python", "-m", module, *map(str, words)])
