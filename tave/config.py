"""The typed configuration: every key of ``conf/`` with its type and range. What is not here is refused by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tave.conditions import ConditionOptions
from tave.correction import CorrectionOptions
from tave.editor import EditingOptions, TuningOptions
from tave.inflate import InflationOptions
from tave.inversion import InversionOptions
from tave.masking import MaskOptions
from tave.memory import MemoryOptions
from tave.options import OptionError, takes, within
from tave.reference import ReferenceOptions
from tave.sampling import SamplingOptions
from tave.video import ReadOptions

PACKAGE = Path(__file__).parent
# A checkout keeps conf/ beside the package; a wheel carries it inside.
CONF = PACKAGE.parent / "conf" if (PACKAGE.parent / "conf" / "train.yaml").is_file() else PACKAGE / "conf"

OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)


def slug(text: str) -> str:
    """``text`` as a folder name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "edit"


OmegaConf.register_new_resolver("slug", slug, replace=True)


def chosen() -> dict[str, Any]:
    """What was asked of this Hydra job: ``experiment``, the file's name or None, and ``overrides`` as they were typed."""
    told = HydraConfig.get()
    return {"experiment": told.runtime.choices.get("experiment"), "overrides": list(told.overrides.task)}


# Groups and keys that a sweep doesn't vary to compare them.
NO_VALUES = ("video", "experiment", "backbone", "logger", "metrics", "trainer", "cache")


def _job(fact: str) -> str | None:
    """What Hydra knows of this job, for loggers; None outside of a Hydra door, and where there is no such thing.

    ``study``: the experiment, else the sweep's folder; ``values``: what was asked for but the clip, after a blank, by whoever
    sweeps: an agent of W&B starts single runs;
    ``backbone``: the choice; ``row``: the experiment of a single run, else tave.
    """
    if not HydraConfig.initialized():
        return "" if fact == "values" else None
    told = HydraConfig.get()
    experiment, sweeps = told.runtime.choices.get("experiment"), told.mode == RunMode.MULTIRUN
    if fact == "study":
        return experiment or (Path(told.sweep.dir).name if sweeps else None)
    if fact == "values":
        words = {word: re.split(r"[.=]", word.lstrip("+"))[0] for word in told.overrides.task}
        return "".join(f" {word}" for word, group in words.items() if group not in NO_VALUES)
    if fact == "backbone":
        return told.runtime.choices.get("backbone")
    return experiment if experiment and not sweeps else "tave"


OmegaConf.register_new_resolver("job", _job, replace=True)


@dataclass
class EditEntry:
    """One edit of a clip. ``matte``: a picture of the target's silhouette, for target images without alpha.

    ``target_image``: a path, or a list of them, several pictures of one object; ``matte`` then as many, or none.
    ``mask``: where to edit, a clip or a folder of pictures that is white there; without it the region is found.
    """

    target_image: Any = MISSING
    target_prompt: str = MISSING
    matte: Any = None
    mask: str | None = None
    truth: str | None = None  # folder with the known answer; read by the metrics alone

    @property
    def images(self) -> list[tuple[str, str | None]]:
        """Each target image with its matte. Raises :class:`OptionError` for what are no paths, or not as many."""
        images, mattes = (_paths(name, getattr(self, name)) for name in ("target_image", "matte"))
        if not images:
            raise OptionError("video.target_image is empty: give a picture, or several as [a.png,b.png]")
        if mattes and len(mattes) != len(images):
            raise OptionError(f"video.matte has {len(mattes)} for {len(images)} target images: give one for each, or none")
        return [(image, mattes[i] if mattes else None) for i, image in enumerate(images)]


def _paths(name: str, value: Any) -> list[str]:
    told = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(told, list | tuple) or not all(isinstance(path, str) for path in told):
        raise OptionError(f"video.{name}={value!r} is no path: give one, or several as [a.png,b.png]")
    return list(told)


@dataclass(frozen=True)
class VideoOptions(ReadOptions):
    """The clip, what it shows, and the edits to make: ``target_*`` for one, ``edits`` for several by name."""

    name: str = "clip"
    path: str = MISSING
    source_prompt: str = MISSING
    target_image: Any = None  # a path, or a list of them, as in EditEntry
    target_prompt: str | None = None
    matte: Any = None
    mask: str | None = None
    edit: str | None = None  # the name of the edit given by target_image; made from that file's name if absent
    edits: dict[str, EditEntry] = field(default_factory=dict)

    def requests(self) -> dict[str, EditEntry]:
        """All edits by name: the listed ones and that of ``target_image``, which ``matte``, ``mask`` and ``edit`` belong to.

        Without a target image, matte and mask are the only listed edit's. Raises :class:`OptionError` where they fit none,
        where an image lacks its prompt, and for a name that is taken or no file name.
        """
        wanted = dict(self.edits)
        if (self.target_image is None) != (self.target_prompt is None):
            raise OptionError("video.target_image and video.target_prompt belong together: give both, or neither")
        if self.target_image is not None and self.target_prompt is not None:
            entry = EditEntry(self.target_image, self.target_prompt, self.matte, self.mask)
            name = self.edit or slug(Path(entry.images[0][0]).stem)
            if name in wanted:
                raise OptionError(f"video.edit={name} is an edit of this clip already: give another name as video.edit=...")
            wanted[name] = entry
        else:
            told = {key: value for key in ("matte", "mask", "edit") if (value := getattr(self, key)) is not None}
            if "edit" in told:
                raise OptionError("video.edit names the edit of video.target_image: give that too")
            if told and len(wanted) != 1:
                key = next(iter(told))
                raise OptionError(
                    f"video.{key} is one edit's and {len(wanted)} are listed: give video.target_image or video.edits.NAME.{key}"
                )
            wanted = {name: replace(entry, **told) for name, entry in wanted.items()}
        for name in wanted:
            if slug(name) != name:
                raise OptionError(f"edit name {name!r} can't be a folder name: use letters, digits, '-' and '_'")
        return wanted


@dataclass(frozen=True)
class MetricsOptions:
    """What is measured after the edits; ``judge``: folder of the open_clip judge, null for none.

    ``objective``: the figure that a search over options looks at, as in metrics.json; null for none.
    """

    enabled: bool = True
    judge: str | None = None
    objective: str | None = None

    @property
    def judge_folder(self) -> Path | None:
        return Path(self.judge) if self.judge else None


@dataclass
class TrainOptions:
    """The root of ``conf/train.yaml``."""

    video: VideoOptions = field(default_factory=VideoOptions)
    backbone: dict[str, Any] = field(default_factory=dict)  # a `_target_` and its arguments
    condition: ConditionOptions = field(default_factory=ConditionOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    inflation: InflationOptions = field(default_factory=InflationOptions)
    tuning: TuningOptions = field(default_factory=TuningOptions)
    inversion: InversionOptions = field(default_factory=InversionOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    correction: CorrectionOptions = field(default_factory=CorrectionOptions)
    sampler: SamplingOptions = field(default_factory=SamplingOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    metrics: MetricsOptions = field(default_factory=MetricsOptions)
    compile: bool = False  # torch.compile of the UNet's transformer blocks: slow to start, then faster
    seed: int = 33
    cache: str = "outputs/cache"

    def __post_init__(self) -> None:
        within("seed", self.seed, 0, 2**31 - 1)
        called = {"backbone": self.backbone, "trainer": self.trainer, **{f"logger.{k}": v for k, v in self.logger.items()}}
        for name, settings in called.items():
            _check_called(name, settings)
        self.memory.check(self.precision)
        if self.reference.confine != "off" and self.memory.branches == "alone":
            raise OptionError(f"reference.confine={self.reference.confine} blends two branches: set memory.branches=together")

    @property
    def precision(self) -> str:
        """The Trainer's, by Lightning's names."""
        return str(self.trainer.get("precision", "32-true"))

    @property
    def editing(self) -> EditingOptions:
        return EditingOptions(self.reference, self.inversion, self.mask, self.correction, self.sampler)


def _check_called(name: str, settings: Any) -> None:
    """Raise :class:`OptionError` unless the group ``name`` is nothing, or calls a ``_target_`` with arguments that it has."""
    if settings == {}:
        return
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise OptionError(f"{name}={settings!r} says nothing to call: drop it, or give {name}._target_")
    try:
        target = get_object(settings["_target_"])
    except (ImportError, ValueError) as error:
        raise OptionError(f"{name}._target_={settings['_target_']}: {str(error).splitlines()[0]}") from error
    takes(name, target, [key for key in settings if not key.startswith("_")])


@dataclass
class EditOptions(TrainOptions):
    """The root of ``conf/edit.yaml``: ``run`` is the folder of the tuned clip; what is not given comes from there."""

    run: str = MISSING


class Place(Callback):
    """Makes the folder of a run or a sweep before Hydra does, whose refusal would be a traceback."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _make("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _make("hydra.sweep.dir", config.hydra.sweep.dir)


def _make(key: str, folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # No exception of another kind leaves a callback.
        raise SystemExit(f"error: {key}={folder} can't be made a folder ({error.strerror}): give another") from None


def _groups() -> str:
    """The groups that tave.train takes and their choices, a line each; conf/ has other doors' groups as well."""
    taken = {"experiment", *(f.name for f in fields(TrainOptions))}
    folders = sorted(at for at in CONF.rglob("*") if at.is_dir() and at.relative_to(CONF).parts[0] in taken)
    choices = {at.relative_to(CONF).as_posix(): sorted(file.stem for file in at.glob("*.yaml")) for at in folders}
    return "\n".join(f"{group}: {', '.join(names)}" for group, names in choices.items())


OmegaConf.register_new_resolver("groups", _groups, replace=True)


def schema(root: type) -> DictConfig:
    """``root`` as a config that Hydra may fill: frozen dataclasses would refuse every override."""
    made = OmegaConf.structured(root)
    _thaw(made)
    return made


def _thaw(node: Any) -> None:
    if isinstance(node, DictConfig):
        OmegaConf.set_readonly(node, None)
        for key in node:
            _thaw(node._get_node(key))


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them. Raises :class:`OptionError` with one line that names the first that it can't read."""
    parser, found = OverridesParser.create(), []
    for word in overrides:
        try:
            found.append(parser.parse_override(word))
        except HydraException as error:
            raise OptionError(f"{word!r} can't be read as KEY=VALUE ({_line(error)})") from error
    return found


def composed(root: str, overrides: Sequence[str]) -> DictConfig:
    """``conf/ROOT.yaml`` under ``overrides``, for callers outside of a door.

    Raises :class:`OptionError` with one line that names the key or the choice and the remedy.
    """
    parsed(overrides)
    around = GlobalHydra.instance().hydra  # a door's, or a notebook's with other files
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(root, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        told = " ".join(_line(each) for each in (error, error.__cause__) if each)
        raise OptionError(f"{told} (python -m tave.train --help lists every key and choice)") from error
    except ValueError as error:  # a group's choice that is no name: Hydra doesn't say which
        raise OptionError(f"{', '.join(overrides)}: {_line(error)}") from error
    finally:
        GlobalHydra.instance().hydra = around


def _line(error: BaseException) -> str:
    """What Hydra or OmegaConf says, in one line, without advice that doesn't hold here: no key can be appended."""
    told = str(error).split("Config search path:")[0].split("\n    full_key:")[0]
    return " ".join(line.strip() for line in told.splitlines() if line.strip() and not line.startswith("To append"))


def typed(cfg: DictConfig) -> Any:
    """A composed config -> its dataclasses, checked: no key unknown, none missing, every value in its range.

    Raises :class:`OptionError` with one line that names the key and the remedy.
    """
    if strange := _unknown(cfg, ""):
        raise OptionError(f"unknown key {strange[0]!r}: drop it, or see the known ones with --help")
    try:
        if absent := sorted(OmegaConf.missing_keys(cfg)):
            raise OptionError(f"{', '.join(absent)} not set: add for example +video=bus_to_suv, or give {absent[0]}=...")
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise OptionError(f"{error.full_key or 'config'}: {_line(error)}") from error


def _unknown(cfg: Any, prefix: str) -> list[str]:
    """Keys that a leading plus has added beside the schema; Hydra lets them pass."""
    kind = OmegaConf.get_type(cfg) if isinstance(cfg, DictConfig) else None
    if kind is None or not is_dataclass(kind):
        return []
    known = {f.name for f in fields(kind)}
    found = [f"{prefix}{key}" for key in cfg if key not in known]
    for key in known & set(cfg):
        if not OmegaConf.is_missing(cfg, key) and not OmegaConf.is_interpolation(cfg, key):
            found += _unknown(cfg._get_node(key), f"{prefix}{key}.")
    return found


store = ConfigStore.instance()
store.store(name="train_schema", node=schema(TrainOptions))
store.store(name="edit_schema", node=schema(EditOptions))
