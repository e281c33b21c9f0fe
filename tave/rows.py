"""One case under many rows: tuned once, then one more edit for each method and each control, labelled and measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tave.cache import read_json, write_json
from tave.config import CONF, EditEntry, MetricsOptions, TrainOptions, schema, typed
from tave.controls import CONTROLS, WHOLE, make, outdated, region_told
from tave.files import file_digest
from tave.listing import ListedCase
from tave.options import OptionError
from tave.video import ReadOptions, read_clip
from tave.video.frames import to_bytes

if TYPE_CHECKING:
    from eval.score import Scores, Toolbox

AFTERWARDS = ("reference", "mask", "correction", "sampler")  # what may differ between edits of one tuned clip
# What a resumed run must agree in, and of its clip beside the frames.
SAME = (*AFTERWARDS, "seed", "backbone", "condition", "inflation", "tuning", "inversion", "video")
SAME_VIDEO = ("source_prompt", *(option.name for option in fields(ReadOptions)))
MEND = "give another folder=..., or delete it"


@dataclass
class Method:
    """A row: a file of conf/experiment by name, then ``overrides`` as for ``tave.edit``.

    ``oracle``: it is told the true region, so only cases whose truth or annotation is known have it.
    """

    experiment: str | None = None
    overrides: list[str] = field(default_factory=list)
    oracle: bool = False


def method_of(name: str, told: Mapping[str, Any]) -> Method:
    """The row ``name`` as a config tells it. Raises :class:`OptionError` for what is unknown there, or in what it changes."""
    try:
        method: Method = OmegaConf.to_object(OmegaConf.merge(schema(Method), dict(told)))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise OptionError(f"methods.{name}: {str(error).splitlines()[0]}") from error
    changes_of(name, method)
    return method


def changes_of(name: str, method: Method) -> DictConfig:
    """What ``method`` changes of the run's options. Raises :class:`OptionError` for an unknown key or one of the tuning."""
    path = CONF / "experiment" / f"{method.experiment}.yaml"
    if method.experiment and not path.is_file():
        raise OptionError(f"methods.{name}.experiment={method.experiment}: there is no {path}")
    try:
        file = OmegaConf.load(path) if method.experiment else {}
        changes = OmegaConf.merge(file, OmegaConf.from_dotlist(list(method.overrides)))
        OmegaConf.merge(schema(TrainOptions), changes)
    except OmegaConfBaseException as error:
        raise OptionError(f"methods.{name}: {str(error).splitlines()[0]}") from error
    if early := sorted(str(key) for key in changes if key not in AFTERWARDS):
        raise OptionError(f"methods.{name} changes {', '.join(early)}: put it into overrides=[...] of a benchmark of its own")
    return changes  # type: ignore[return-value]


@dataclass(frozen=True)
class Job:
    """A case under one seed. ``config`` is that of its tuning; ``home`` its run folder."""

    case: ListedCase
    seed: int
    home: Path
    config: DictConfig

    @property
    def tuned(self) -> bool:
        return (self.home / "run.json").is_file()

    def stands(self, row: str) -> bool:
        return (self.home / "edits" / row / "edit.json").is_file()

    def tune(self) -> None:
        """Tune, unless that stands. Raises :class:`OptionError` if it was tuned by other choices, or on another clip."""
        from tave.edit import recorded
        from tave.train import train

        asked: Any = OmegaConf.to_container(self.config, resolve=True)
        if not self.tuned:
            train(typed(self.config), self.home, config=asked, show=False)
            return
        before: Any = OmegaConf.to_container(recorded(self.home), resolve=True)
        for told in (before, asked):
            told["video"] = {key: told["video"][key] for key in SAME_VIDEO}
        self._agree_in_weights(before["backbone"], asked["backbone"])
        self._agree({key: before[key] for key in SAME}, {key: asked[key] for key in SAME})
        self._agree_in_frames()

    def edit(self, row: str, method: Method) -> None:
        """Make a method's edit, unless it stands. Raises :class:`OptionError` if that was asked for otherwise."""
        from tave.edit import edit, recorded

        entry = EditEntry(self.case.target_image, self.case.target_prompt, self.case.matte, truth=self.case.truth)
        cfg = OmegaConf.merge(recorded(self.home), changes_of(row, method))
        options: TrainOptions = typed(cfg)  # type: ignore[arg-type]
        if method.oracle:
            entry.mask = str(region_told(self.home, self.case, options.video))
        if self.stands(row):
            self._agree(self._told(row)["options"], json.loads(json.dumps(asdict(options.editing))))
            self._agree_in_target(row)
            return
        self._forget(row)
        video = replace(options.video, edits={row: entry})
        loggers = {name: called_as(row, told) for name, told in options.logger.items()}
        edit(self.home, replace(options, video=video, logger=loggers, metrics=MetricsOptions(enabled=False)), show=False)

    def control(self, row: str) -> None:
        """Make a control's edit from the files of the row ``tave``, unless it stands and was made from these.

        Raises :class:`OptionError` if that row was asked for otherwise.
        """
        if not self.stands(row) or outdated(row, self.home):
            self._forget(row)
            make(row, self.home, self.case)
        self._agree_in_target(row)

    def label(self, row: str) -> None:
        """Say in ``edit.json`` which row of which case it is, for the tables."""
        told = self._told(row)
        label = {"case": self.case.name, "group": list(self.case.groups), "method": row, "seed": self.seed}
        if told.get("benchmark") != label:
            write_json(self.home / "edits" / row / "edit.json", told | {"benchmark": label})

    def score(self, row: str, tools: Toolbox) -> Scores | None:
        """Measure the edit; None if it has its figures, measured by these ``tools`` on what is there now."""
        from eval.score import score_edits

        drawn = Path(self.case.annotations) if self.case.annotations and not self.case.truth else None
        return None if self._measured(row, tools, drawn) else score_edits(self.home, tools, [row], drawn)

    def _measured(self, row: str, tools: Toolbox, drawn: Path | None) -> bool:
        told = read_json(self.home / "metrics.json")
        figures, on = (told.get(part, {}).get(row) for part in ("edits", "measured"))
        if not figures or on:
            return bool(figures) and on == tools.imprint(self.home / "edits" / row / "edited.mp4", drawn)
        # Older figures don't tell what they were measured on: they stand where their names and ids don't contradict.
        by = told.get("metrics", {}).get("frame_consistency_adjacent", {}).get("id", "//").split("/")[1].partition("@")[0]
        known = ("", tools.judge.name if tools.judge else "")
        return (
            tools.clip in ("judge", None)
            and by in known
            and (bool(self.case.truth) or ("mask_recall" in figures) == bool(drawn))
        )

    def _forget(self, row: str) -> None:
        """Take the figures of the edit that was there before out of ``metrics.json``."""
        path = self.home / "metrics.json"
        told = read_json(path)
        if [told[part].pop(row) for part in ("edits", "measured") if row in told.get(part, {})]:
            write_json(path, told)

    def _told(self, row: str) -> dict[str, Any]:
        return read_json(self.home / "edits" / row / "edit.json")

    def _agree_in_weights(self, before: dict[str, Any], asked: dict[str, Any]) -> None:
        """Let ``before`` have the place of ``asked``, where the same weights lie."""
        place, moved = Path(str(asked.get("path"))), before.get("path") and asked.get("path")
        if not moved or before["path"] == asked["path"]:
            return
        for file, sha in read_json(self.home / "run.json").get("weights", {}).items():
            if (place / file).is_file() and file_digest(place / file) != sha:
                raise OptionError(f"{self.home} was made with another {file} than that of {place}: {MEND}")
        before["path"] = asked["path"]

    def _agree_in_frames(self) -> None:
        options: TrainOptions = typed(self.config)
        asked, before = read_clip(options.video.path, options.video), read_clip(self.home / "source.mp4", WHOLE)
        same = asked.frames.shape == before.frames.shape and torch.equal(to_bytes(asked.frames), to_bytes(before.frames))
        if not same or abs(asked.fps - before.fps) > 0.01:
            raise OptionError(f"{self.home} was made of another clip than {options.video.path}: {MEND}")

    def _agree_in_target(self, row: str) -> None:
        told, matte = self._told(row), self.case.matte
        asked = {
            "target_prompt": self.case.target_prompt,
            "sha256": file_digest(self.case.target_image),
            "matte_sha256": file_digest(matte) if matte else None,
        }
        before = {key: told.get(key) for key in asked}
        if "matte_sha256" not in told:  # an older edit tells its path alone
            before["matte_sha256"] = asked["matte_sha256"] if matte and told.get("matte") else told.get("matte")
        self._agree(before, asked, self.home / "edits" / row)

    def _agree(self, before: Mapping[str, Any], now: Mapping[str, Any], place: Path | None = None) -> None:
        for key, old, new in differing(before, now):
            raise OptionError(f"{place or self.home} was made with {key}={old}, not {new}: {MEND}")


def called_as(row: str, logger: dict[str, Any]) -> dict[str, Any]:
    """The settings of a logger that has names and tags, for another row of a case: the last tag is the row's."""
    if not {"name", "tags"} <= logger.keys():
        return logger
    return logger | {"name": f"{logger['name']} {row}", "tags": [*logger["tags"][:-1], row]}


def differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value wherever they differ; a key that one side hasn't got is None there."""
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differing(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def wanted(case: ListedCase, rows: Mapping[str, Method | None]) -> Iterator[tuple[str, Method | None]]:
    """The rows that ``case`` can have, methods first: controls (None) are made from the files of one of them."""
    known = case.truth or case.annotations
    yield from ((row, method) for row, method in rows.items() if method is not None and (known or not method.oracle))
    yield from ((row, None) for row, method in rows.items() if method is None and row in CONTROLS)
