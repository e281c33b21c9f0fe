"""Every option of every entry point: type, default, range and meaning. Imports the standard library alone."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

NAME_LENGTH = 100  # of a folder that is named by a user: file systems take 255 bytes, and files beside it add to it
MOST_FRAMES = 10_000
MISSING = "???"  # OmegaConf's mark of a value that has to be given
PACKAGE = Path(__file__).parent
# A checkout keeps conf/ beside the package, a wheel inside it.
CONF = PACKAGE.parent / "conf" if (PACKAGE.parent / "conf" / "train.yaml").is_file() else PACKAGE / "conf"
JUDGE = PACKAGE / "roadside" / "weights" / "judge"  # a CLIP trained on the drawn world

# What a file of conf/backbone may set beside backbone.*: the numbers that follow from the size of the network.
BACKBONE_KEYS = ("video.width", "video.height", "video.multiple", "tuning.steps", "tuning.lr", "inversion.steps")
BACKBONE_KEYS += ("inversion.refine", "sampler.guidance_scale", "correction.block")
# What tave.edit may change of a tuned clip: whole groups, and single keys.
EDIT_GROUPS = ("reference", "mask", "correction", "sampler", "output", "metrics", "logger", "trainer", "memory")
EDIT_KEYS = ("video.target_image", "video.target_prompt", "video.matte", "video.mask", "video.object")
EDIT_KEYS += ("video.mask_inverted", "video.edit", "video.edits", "video.audio")
EDIT_KEYS += ("backbone.path", "backbone.adapter", "cache", "report", "quiet", "json", "run", "inputs")

GATE_DB = 3.0  # docs/method.md, section 4: further below the autoencoder's round trip an edit loses the source
OURS = "tave"  # the benchmark's method whose masks the controls share, and that others are compared with
TRAINABLES = ("patent", "none", "temporal_only", "all_attention", "lora")
KV_FRAMES = ("first_previous", "previous_current", "first_previous_current")
PREDICTIONS = ("v_prediction", "epsilon")
REFERENCES = ("as_is", "neutral", "in_context", "joint", "none")
MATTES = ("auto", "alpha", "given", "colour", "segmented", "none")
CROPS = ("object", "frame")
UNIONS = ("none", "unconditional", "disputed")
PRESETS = ("full", "80gb", "24gb", "16gb", "12gb", "8gb")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
HALF_PRECISIONS = PRECISIONS[1:]
FULL_SIZE = ("sd21_unclip", "sd21_unclip_small", "sd15_ip_adapter")
CACHE_ACTIONS = ("list", "verify", "prune")
TIMES = {"min": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
SIZES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
STAGES = ("data", "autoencoder", "clip", "judge", "unet", "ship")
TRAINER = {"accelerator": "auto", "devices": 1, "precision": "32-true", "deterministic": True, "log_every_n_steps": 5}
# Further arguments of lightning.Trainer that are the user's; the others follow from tave's own options.
TRAINER_ARGUMENTS = (*TRAINER, "strategy", "num_nodes", "benchmark", "detect_anomaly", "profiler", "plugins")
ONE_GPU = ", or [N] for GPU number N"
# Loggers and their arguments; None: whatever the library takes.
LOGGERS: dict[str, tuple[str, ...] | None] = {
    "csv": ("name", "version", "prefix", "flush_logs_every_n_steps"),
    "tensorboard": ("name", "version", "prefix", "sub_dir", "log_graph", "default_hp_metric"),
    "wandb": None,
}
# Those of their arguments that become folders.
LOGGER_NAMES = dict.fromkeys(("csv", "tensorboard"), ("name", "version", "sub_dir")) | {"wandb": ("id", "version")}
STUDY_METRICS = ("ideal_psnr_aligned", "mask_iou_union", "mask_iou_final", "mask_recall", "residue_old")
STUDY_METRICS += ("object_presence", "judge_vehicle_accuracy", "judge_color_accuracy", "judge_pattern_accuracy")
STUDY_METRICS += ("warp_error_object", "object_gradient_energy", "background_psnr")
STUDY_METRICS += ("reconstruction_psnr", "edit_seconds")

IMAGE = "picture of the target, or [several] of one object"
MATTE = "silhouette in the picture, white inside, or [several]; null: none"
MASK = "where to edit: a clip, pictures in a folder, or one, white inside; null: found"
OBJECT = "number of the mask's object to edit; null: all"
INVERTED = "the mask is black where to edit"
AGREEMENT = "largest forward-backward error of a match, share of the grid's shorter side; null: no check"
JUDGE_HELP = "classifier of drawn objects, for drawn clips alone: shipped, FOLDER; null: none"
CLIP_HELP = "CLIP: vit-l-14, FOLDER, hf-hub:OWNER/NAME, judge; null: the judge's for drawn clips, none for footage"


QUIET = "print the folder alone: neither progress nor warnings nor the table at the end"
JSON = "print one line of JSON instead of the folder: what was made, figures, warnings, seconds, or the error"


class OptionError(ValueError):
    """An invalid option; the message names the key and the remedy."""


def choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise :class:`OptionError` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise OptionError(f"{name}={value} is not known: choose one of {', '.join(allowed)}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raise :class:`OptionError` unless ``low <= value <= high``; NaN is refused as well."""
    if not low <= value <= high:
        allowed = f"between {low} and {high}" if high < math.inf else f"to {low} or more"
        raise OptionError(f"{name}={value} is out of range: set it {allowed}")


def nearest(word: str, words: Iterable[str]) -> str:
    """The names most like ``word`` as a question, or all of few names."""
    among = sorted(words)
    if found := get_close_matches(word, among, 3, 0.85) or get_close_matches(word, among, 1, 0.5):
        return f"did you mean {' or '.join(found)}?"
    return f"choose one of {', '.join(among)}" if len(among) < 20 else "--help lists all"


def _known(option: str, word: str, words: Iterable[str]) -> None:
    if word not in words:
        raise OptionError(f"unknown option {option}: {nearest(word, words)}")


def option(
    default: Any,
    help: str,  # noqa: A002
    *,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    text: bool = False,
) -> Any:
    """A dataclass field with what is checked of it and printed about it.

    Args:
        default: The value; of a list or dict each instance gets a copy, of a class (a group of options) an instance.
        help: The meaning in one line, with the unit.
        choices: All values, or all elements of a list.
        low, high: The range, both included; of a list, for each element.
        above: A lower bound that is not included.
        text: A path or a prompt, which the command line takes as it is typed (see :mod:`tave.cli`).
    """
    about = {"help": help, "choices": choices, "low": low, "high": high, "above": above, "text": text}
    if isinstance(default, type):
        return field(default_factory=default, metadata=about)
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=about)
    return field(default=default, metadata=about)


class Options:
    """Base of the option dataclasses: checks every field by the metadata that :func:`option` gave it."""

    _group = ""

    def __init_subclass__(cls, group: str | None = None) -> None:
        cls._group = cls._group if group is None else f"{group}."

    def __post_init__(self) -> None:
        for entry in fields(self):  # type: ignore[arg-type]
            check_option(f"{self._group}{entry.name}", getattr(self, entry.name), entry)


def check_option(name: str, value: Any, entry: Field[Any]) -> None:
    """Raise :class:`OptionError` for a ``value`` that the field ``entry`` of :func:`option` doesn't take."""
    about = entry.metadata
    if value is None and not str(entry.type).endswith(("None", "Any")):
        raise OptionError(f"{name} is null: give a value")
    if value is None or value == MISSING:
        return
    values: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    for text in values:
        if isinstance(text, str):
            check_text(name, text)
    for each in values:
        if about["choices"] is not None:
            choice(name, each, about["choices"])
        low, high = about["low"], about["high"]
        if low is not None or high is not None:
            within(name, each, -math.inf if low is None else low, math.inf if high is None else high)
        if about["above"] is not None and not each > about["above"]:
            raise OptionError(f"{name}={each} is out of range: set it above {about['above']}")


def check_text(name: str, text: str) -> None:
    """Raise :class:`OptionError` for a text that can't be written: bytes that are no UTF-8, half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionError(f"{name} is no text in UTF-8: give other characters, or rename the file") from None


def _check_steps(name: str, steps: Sequence[float]) -> None:
    """A part of the schedule: [first, last] with 0 <= first < last <= 1, 0 the noisy end."""
    if len(steps) != 2 or not 0 <= steps[0] < steps[1] <= 1:
        raise OptionError(f"{name}={list(steps)} is no part of the schedule: give [first,last], 0 <= first < last <= 1")


def _check_trainer(name: str, value: Any) -> None:
    """Refuse an argument that lightning.Trainer takes and fails at later, or that starts the command several times."""
    key = name.rpartition(".")[2]
    count = len(value) if isinstance(value, list) else value if type(value) is int else 1
    if key in ("devices", "num_nodes") and count > 1:
        raise OptionError(f"{name}={value}: a clip is edited on one device: set {name}=1{ONE_GPU * (key == 'devices')}")
    switch = key in ("deterministic", "detect_anomaly", "benchmark")
    if switch and not isinstance(value, bool | None) and (key, value) != ("deterministic", "warn"):
        raise OptionError(f"{name}={value}: give true or false")
    if key == "log_every_n_steps" and (type(value) is not int or value < 1):
        raise OptionError(f"{name}={value}: give a whole number from 1 on")


def slug(text: str) -> str:
    """``text`` as the name of a folder: letters, digits, ``-`` and ``_``, :data:`NAME_LENGTH` at most."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain)[:NAME_LENGTH].strip("-") or "edit"


def check_name(what: str, name: str) -> None:
    """Raise :class:`OptionError` unless ``name`` can be a folder's; ``what`` begins the message."""
    if slug(name) != name:
        raise OptionError(f"{what} can't be a folder name: use at most {NAME_LENGTH} letters, digits, '-' and '_'")


@dataclass(frozen=True)
class ReadOptions(Options, group="video"):
    """Which frames of a clip to read, and at what size."""

    frames: int | None = option(None, "number of frames; null: all", low=1, high=MOST_FRAMES)
    start: int = option(0, "index of the first frame", low=0, high=10_000_000)
    stride: int = option(1, "take every n-th frame", low=1, high=10_000)
    width: int | None = option(None, "width in px; null: by height and aspect, or the clip's own", low=1, high=16_384)
    height: int | None = option(None, "height in px; null: by width and aspect, or the clip's own", low=1, high=16_384)
    fit: str = option("crop", "how a clip of another aspect fits", choices=("crop", "stretch", "pad"))
    multiple: int = option(8, "width and height are multiples of this many px", low=1, high=1024)
    crop: str = option("object", "part of the frame that is edited: around the object, or by fit", choices=CROPS)
    audio: str = option("keep", "the clip's sound in the edited clip", choices=("keep", "drop"))
    backdrop: str = option("black", "what transparent pixels of a clip show", choices=("black", "grey", "white"))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None and (rest := side % self.multiple):
                near = f"{side - rest} or {side - rest + self.multiple}" if side > rest else self.multiple
                raise OptionError(f"video.{name}={side} is not a multiple of {self.multiple}: set {near}")

    def wants(self, index: int) -> bool:
        """Whether the clip's frame ``index`` is one of those to read."""
        step, rest = divmod(index - self.start, self.stride)
        return step >= 0 and rest == 0 and (self.frames is None or step < self.frames)

    @staticmethod
    def recorded(video: Mapping[str, Any]) -> ReadOptions:
        """How a run read its clip, from ``config.video`` of its ``run.json``."""
        return ReadOptions(**{entry.name: video[entry.name] for entry in fields(ReadOptions) if entry.name in video})


WHOLE = ReadOptions(frames=None, multiple=1)  # every frame, at the file's own size


@dataclass
class EditEntry(Options, group="video.edits.NAME"):
    """One edit of a clip."""

    target_image: Any = option(MISSING, IMAGE, text=True)
    target_prompt: str = option(MISSING, "description of the edited clip", text=True)
    matte: Any = option(None, MATTE, text=True)
    mask: str | None = option(None, MASK, text=True)
    object: int | None = option(None, OBJECT, low=1, high=65_535)
    mask_inverted: bool = option(False, INVERTED)
    truth: str | None = option(None, "folder of a drawn clip's known answer, for metrics alone", text=True)

    @property
    def images(self) -> list[tuple[str, str | None]]:
        """Each target image with its matte. Raises :class:`OptionError` where they are not paths, or not as many."""
        images, mattes = (_paths(name, getattr(self, name)) for name in ("target_image", "matte"))
        if not images:
            raise OptionError("video.target_image is empty: give a picture, or several as [a.png,b.png]")
        if mattes and len(mattes) != len(images):
            raise OptionError(f"video.matte has {len(mattes)} for {len(images)} target images: give one each, or none")
        return [(image, mattes[i] if mattes else None) for i, image in enumerate(images)]


def _paths(name: str, value: Any) -> list[str]:
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
        raise OptionError(f"video.{name}={value!r} is not a path: give one, or several as [a.png,b.png]")
    return list(paths)


@dataclass(frozen=True)
class VideoOptions(ReadOptions):
    """The clip, what it shows, and its edits: ``target_*`` for one, ``edits`` for several by name."""

    name: str = option("clip", "name of the clip, and of its output folder", text=True)
    path: str = option(MISSING, "the clip: a video, or a folder of numbered pictures (8 frames/s)", text=True)
    source_prompt: str = option(MISSING, "description of the clip", text=True)
    target_image: Any = option(None, IMAGE, text=True)
    target_prompt: str | None = option(None, "description of the edited clip", text=True)
    matte: Any = option(None, MATTE, text=True)
    mask: str | None = option(None, MASK, text=True)
    object: int | None = option(None, OBJECT, low=1, high=65_535)
    mask_inverted: bool = option(False, INVERTED)
    edit: str | None = option(None, "name of the edit; null: from the picture's file name", text=True)
    edits: dict[str, EditEntry] = option({}, "edits by name, each with the keys of an edit: see docs/configuration.md")

    def requests(self) -> dict[str, EditEntry]:
        """All edits by name: the listed ones, and that of ``target_image`` with the keys of an edit that stand here.

        Without a target image, those keys are the only listed edit's. Raises :class:`OptionError` where they match
        none, for an image without prompt, and for a name that is taken or no folder name.
        """
        wanted = dict(self.edits)
        if (self.target_image is None) != (self.target_prompt is None):
            raise OptionError("video.target_image and video.target_prompt belong together: give both, or neither")
        if self.target_image is not None and self.target_prompt is not None:
            more = self.object, self.mask_inverted
            entry = EditEntry(self.target_image, self.target_prompt, self.matte, self.mask, *more)
            name = self.edit or slug(Path(entry.images[0][0]).stem)
            if name in wanted:
                raise OptionError(f"video.edit={name} is an edit of this clip already: give another video.edit=NAME")
            wanted[name] = entry
        else:
            keys = ("matte", "mask", "object", "mask_inverted", "edit")
            given = {key: value for key in keys if (value := getattr(self, key))}
            if "edit" in given:
                raise OptionError("video.edit names the edit of video.target_image: give that too")
            if given and len(wanted) != 1:
                raise OptionError(
                    f"video.{next(iter(given))} belongs to one edit and {len(wanted)} are listed: "
                    f"give video.target_image, or video.edits.NAME.{next(iter(given))}"
                )
            wanted = {name: replace(entry, **given) for name, entry in wanted.items()}
        if any(entry.mask is None and (entry.object or entry.mask_inverted) for entry in wanted.values()):
            raise OptionError("video.object and video.mask_inverted say how to read video.mask: give that too")
        for name in wanted:
            check_name(f"edit name {name!r}", name)
        return wanted


@dataclass(frozen=True)
class BackboneOptions(Options, group="backbone"):
    """The pretrained image model."""

    family: str = option("unclip", "kind of model", choices=("unclip", "ip_adapter", "tiny"))
    path: str | None = option(None, "folder in diffusers' layout; null: first of mirrors in the hub's cache", text=True)
    mirrors: list[str] = option([], "hub repositories with these weights, best first")
    adapter: str | None = option(None, "ip_adapter: its folder; null: first of adapter_mirrors in the cache", text=True)
    adapter_mirrors: list[str] = option([], "ip_adapter: hub repositories of the adapter")
    name: str | None = option(None, "name of the weights, part of the cache's keys; null: their path", text=True)
    prediction_type: str | None = option(None, "what the UNet predicts; null: as its files state", choices=PREDICTIONS)
    sha256: dict[str, Any] = option({}, "known hashes of the weights, by part and precision")
    licence: str | None = option(None, "licence of the weights, recorded in run.json", text=True)
    seed: int = option(0, "tiny: seed of its random weights", low=0, high=2**31 - 1)
    knows: list[str] = option([], "the only nouns that the model knows; empty: any")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter is not None and self.family != "ip_adapter":
            raise OptionError(f"backbone.adapter is for backbone.family=ip_adapter, not {self.family}: drop it")

    @property
    def chosen(self) -> bool:
        """Whether these options name any weights."""
        return self.family == "tiny" or bool(self.path or self.mirrors)


@dataclass(frozen=True)
class ConditionOptions(Options, group="condition"):
    """What the network is conditioned on."""

    noise_level: int = option(0, "noise level of the image embedding, in scheduler steps", low=0, high=999)
    negative_prompt: str = option("", "what guidance steers away from", text=True)


@dataclass(frozen=True)
class ReferenceOptions(Options, group="reference"):
    """The pictures that the image encoder sees: of the target, and of the source."""

    mode: str = option("joint", "picture of the target; joint: mean of as_is and in_context", choices=REFERENCES)
    frame: str = option("per_frame", "source frame of the source condition", choices=("middle", "first", "per_frame"))
    height_scale: float = option(1.0, "in_context: target's height as a multiple of the source's", low=0.05, high=20)
    heading: str = option("as_is", "in_context: target as it is shown, or mirrored", choices=("as_is", "mirrored"))
    matte: str = option("auto", "how the target is cut out; auto: given, else alpha, else by colour", choices=MATTES)
    segmenter: str | None = option(None, "matte=segmented: folder or cached hub name of the network", text=True)
    feather: float = option(0.02, "in_context: softness of the target's edge, share of its height", low=0, high=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matte == "segmented" and not self.segmenter:
            raise OptionError(
                "reference.matte=segmented needs a segmentation network: give reference.segmenter=FOLDER "
                "(see docs/reference.md), or set reference.matte=auto"
            )


@dataclass(frozen=True)
class InflationOptions(Options, group="inflation"):
    """How the image network becomes a video network."""

    kv_frames: str = option("first_previous", "frames that give keys and values to ST-Attn", choices=KV_FRAMES)


@dataclass(frozen=True)
class WindowOptions(Options, group="window"):
    """How a clip longer than the network's frames is split (docs/method.md, section 8)."""

    frames: int = option(16, "frames that the network sees at once; a shorter clip is not split", low=3, high=10_000)
    overlap: int = option(4, "frames that neighbouring windows share, at least; their predictions are blended", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap > self.frames - 3:  # two frames of context and a new one
            raise OptionError(
                f"window.overlap={self.overlap} leaves no new frame in window.frames={self.frames}: set it to "
                f"{self.frames - 3} or less"
            )


@dataclass(frozen=True)
class TuningOptions(Options, group="tuning"):
    """One-shot fine-tuning on the source clip (docs/method.md, section 3)."""

    steps: int = option(300, "optimizer steps", low=0, high=1_000_000)
    lr: float = option(3e-5, "learning rate", above=0)
    weight_decay: float = option(1e-2, "weight decay", low=0, high=1000)
    gradient_clip: float = option(1.0, "largest norm of the gradient; 0: no limit", low=0, high=1e6)
    trainables: str = option("patent", "which parameters train", choices=TRAINABLES)
    lora_rank: int = option(4, "trainables=lora: rank", low=1, high=1024)
    image_dropout: float = option(0.1, "probability of a step without the image condition", low=0, high=1)
    image_noise: int | None = option(None, "noise level of the image embedding; null: drawn each step", low=0, high=999)


@dataclass(frozen=True)
class InversionOptions(Options, group="inversion"):
    """DDIM inversion of the source clip (docs/method.md, section 4)."""

    steps: int = option(50, "denoising steps, of inversion, mask and sampling", low=1, high=1000)
    refine: int = option(1, "fixed-point refinements of each step", low=0, high=100)
    gate: str = option("warn", "on a poor reconstruction: warn, stop, nothing", choices=("warn", "strict", "off"))
    condition: str = option("source", "prompt and frame, prompt alone, neither", choices=("source", "text", "empty"))


@dataclass(frozen=True)
class MaskOptions(Options, group="mask"):
    """The region of the edit, from the disagreement of two branches (docs/method.md, section 5)."""

    branches: str = option("shared", "read the inversion's latents, or their own", choices=("shared", "separate"))
    weight: str = option("per_step", "divide each step's map by its mean, or not", choices=("per_step", "uniform"))
    steps: list[float] = option([0.0, 0.5], "part of the schedule to average: 0 noisy, 1 clean")
    threshold: str = option("otsu", "kind of threshold", choices=("otsu", "fixed", "quantile"))
    fixed: float = option(0.5, "threshold=fixed: level of the map, clamped at 3 times its mean", low=0, high=1)
    quantile: float = option(0.8, "threshold=quantile: share of the cells outside the mask", low=0, high=1)
    smooth: float = option(0.125, "side of the box filter, share of the latent grid's shorter side", low=0, high=0.5)
    dilate: float = option(0.04, "margin around the mask, share of the latent grid's shorter side", low=0, high=0.5)
    min_piece: float = option(0.05, "smallest piece to keep, as a share of the largest piece's area", low=0, high=1)
    union: str = option("disputed", "add the source object's own response (disputed: times the map)", choices=UNIONS)
    drop_unchanged: float = option(0.075, "least change of an edited pixel, share of the value range", low=0, high=1)
    region: str = option("found", "edit inside the mask, or the whole frame", choices=("found", "whole"))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_steps("mask.steps", self.steps)


@dataclass(frozen=True)
class CorrectionOptions(Options, group="correction"):
    """The inter-frame correction (docs/method.md, section 6)."""

    enabled: bool = option(True, "blend each frame with its neighbours along the correspondence field")
    weights: list[float] = option([0.25, 0.5, 0.25], "shares of the previous, own and following frame; sum 1", low=0)
    block: int = option(-2, "index of the UNet's up block that provides the matched features", low=-16, high=15)
    steps: list[float] = option([0.2, 1.0], "part of the schedule to correct: 0 noisy, 1 clean")
    space: str = option("latent", "what is blended", choices=("latent", "x0", "noise", "features"))
    when: str = option("after_step", "space=latent: when it is blended", choices=("after_step", "before_step"))
    candidates: str = option("masked", "cells of the neighbour to match with", choices=("masked", "all"))
    agreement: float | None = option(0.04, AGREEMENT, low=0, high=1)
    restore_variance: bool = option(True, "space=latent: restore the noise's variance after blending")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_steps("correction.steps", self.steps)
        if len(self.weights) != 3 or not abs(sum(self.weights) - 1) < 1e-6:
            raise OptionError(f"correction.weights={list(self.weights)}: give three weights >= 0 that sum to 1")


@dataclass(frozen=True)
class SamplerOptions(Options, group="sampler"):
    """Sampling of the edit (docs/method.md, section 6)."""

    guidance_scale: float = option(7.5, "classifier-free guidance; 1: none", low=0, high=100)
    fresh_noise: float = option(0.0, "share of new noise in the mask at the start; 0: as inverted", low=0, high=1)
    background: str = option("latents", "outside the mask: the source's latents, or none", choices=("latents", "none"))
    composite: bool = option(True, "outside the mask: the source's own pixels")
    feather: float = option(0.02, "composite's soft edge, share of the frame's shorter side", low=0, high=0.5)


@dataclass(frozen=True)
class OutputOptions(Options, group="output"):
    """What is written of an edit beside its clip."""

    frames: str | None = option(None, "also its frames and mattes as pictures; null: none", choices=("png",))


@dataclass(frozen=True)
class EditingOptions:
    """All choices of the stages after tuning."""

    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    inversion: InversionOptions = field(default_factory=InversionOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    correction: CorrectionOptions = field(default_factory=CorrectionOptions)
    sampler: SamplerOptions = field(default_factory=SamplerOptions)


@dataclass(frozen=True)
class MemoryOptions(Options, group="memory"):
    """Where memory is saved (docs/memory.md)."""

    weights: str = option("full", "frozen weights in float32, or in trainer.precision's type", choices=("full", "half"))
    gradient_checkpointing: bool = option(False, "tuning recomputes activations instead of storing them")
    chunk: int = option(8, "frames that autoencoder and image encoder process at once", low=1, high=10_000)
    tile: int | None = option(None, "side of the autoencoder's tiles in px; null: whole frames", low=64, high=8192)
    branches: str = option("together", "a step's branches in one batch, or in turn", choices=("together", "alone"))
    offload: bool = option(False, "keep encoders and autoencoder in the CPU's memory between uses")
    optimizer: str = option("adamw", "AdamW; 8bit needs bitsandbytes", choices=("adamw", "fused", "8bit"))
    auto: bool = option(False, "checkpoint, offload, smaller chunk and branches in turn, as the device needs them")

    def check(self, precision: str) -> None:
        """Raise :class:`OptionError` for what doesn't work under ``trainer.precision``."""
        if self.weights == "half" and precision not in HALF_PRECISIONS:
            raise OptionError(
                f"memory.weights=half needs trainer.precision={' or '.join(HALF_PRECISIONS)}, not {precision}"
            )
        if self.optimizer == "fused" and precision == "16-mixed":
            raise OptionError(
                "memory.optimizer=fused can't clip the scaled gradients of trainer.precision=16-mixed: "
                "set memory.optimizer=adamw, or trainer.precision=bf16-mixed"
            )


def judge_folder(name: str | None) -> Path | None:
    """The folder of a judge: the shipped one, or a folder by its path; None for none."""
    return JUDGE if name == "shipped" else Path(name) if name else None


@dataclass(frozen=True)
class MetricsOptions(Options, group="metrics"):
    """What is measured of the edits."""

    enabled: bool = option(True, "measure every edit")
    judge: str | None = option("shipped", JUDGE_HELP, text=True)
    clip: str | None = option(None, CLIP_HELP, text=True)
    objective: str | None = option(None, "metric that a search optimises, e.g. ideal_psnr_aligned")


@dataclass(frozen=True)
class TrainOptions(Options):
    """Root of ``conf/train.yaml``."""

    video: VideoOptions = option(VideoOptions, "the clip and its edits")
    backbone: BackboneOptions = option(BackboneOptions, "the pretrained image model")
    condition: ConditionOptions = option(ConditionOptions, "prompt and image condition")
    reference: ReferenceOptions = option(ReferenceOptions, "the pictures that the image encoder sees")
    inflation: InflationOptions = option(InflationOptions, "from image network to video network")
    window: WindowOptions = option(WindowOptions, "how a long clip is split")
    tuning: TuningOptions = option(TuningOptions, "one-shot fine-tuning on the clip")
    inversion: InversionOptions = option(InversionOptions, "DDIM inversion of the clip")
    mask: MaskOptions = option(MaskOptions, "the region of the edit")
    correction: CorrectionOptions = option(CorrectionOptions, "inter-frame correction")
    sampler: SamplerOptions = option(SamplerOptions, "sampling of the edit")
    output: OutputOptions = option(OutputOptions, "files written beside the edited clip")
    memory: MemoryOptions = option(MemoryOptions, "memory options")
    metrics: MetricsOptions = option(MetricsOptions, "what is measured of the edits")
    trainer: dict[str, Any] = option(TRAINER, "arguments of lightning.Trainer")
    logger: dict[str, Any] = option({}, f"loggers by name ({', '.join(LOGGERS)}), each with its arguments")
    compile: bool = option(False, "torch.compile of the UNet's transformer blocks: slow to start, then faster")
    seed: int = option(33, "seed of all random numbers", low=0, high=2**31 - 1)
    cache: str = option("outputs/cache", "folder of the stages' cached results", text=True)
    report: bool = option(True, "write report.html")
    quiet: bool = option(False, QUIET)
    json: bool = option(False, JSON)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value in self.trainer.items():
            _known(f"trainer.{key}", key, TRAINER_ARGUMENTS)
            _check_trainer(f"trainer.{key}", value)
        choice("trainer.precision", self.precision, PRECISIONS)
        for name, arguments in self.logger.items():
            arguments = arguments if isinstance(arguments, dict) else {}
            if "_target_" not in arguments:
                _known(f"logger.{name}", name, LOGGERS)
                for key, value in arguments.items():
                    _known(f"logger.{name}.{key}", key, LOGGERS[name] or (key,))
                    if key in LOGGER_NAMES[name] and isinstance(value, str) and value:
                        check_name(f"logger.{name}.{key}={value!r}", value)
        self.memory.check(self.precision)

    @property
    def precision(self) -> str:
        """The trainer's, by Lightning's names."""
        return str(self.trainer.get("precision", "32-true"))

    @property
    def editing(self) -> EditingOptions:
        """The options of the stages after tuning."""
        return EditingOptions(self.reference, self.inversion, self.mask, self.correction, self.sampler)

    @property
    def judge(self) -> Path | None:
        """Folder of the judge that ``metrics.judge`` names; None for none."""
        return judge_folder(self.metrics.judge)


@dataclass(frozen=True)
class EditOptions(TrainOptions):
    """Root of ``conf/edit.yaml``; what is not given is the run's."""

    run: str = option(MISSING, "folder of the tuned clip, as tave.train printed it", text=True)
    inputs: str | None = option(None, "folder of the clip's file; null: where it was", text=True)


@dataclass(frozen=True)
class PlaceOptions(Options, group="backbone"):
    """Where the weights are that a run was tuned from."""

    path: str | None = option(None, "their folder; null: as recorded", text=True)
    adapter: str | None = option(None, "ip_adapter: its folder; null: as recorded", text=True)


@dataclass(frozen=True)
class VerifyOptions(Options):
    """Root of ``conf/verify.yaml``."""

    run: str = option(MISSING, "run folder", text=True)
    remake: bool = option(False, "make the run again in a temporary folder, and compare bit for bit")
    inputs: str | None = option(None, "folder of the clip and pictures; null: where they were", text=True)
    backbone: PlaceOptions = option(PlaceOptions, "the weights that the run was tuned from")


@dataclass(frozen=True)
class ReportOptions(Options):
    """Root of ``conf/report.yaml``."""

    run: str = option(MISSING, "run folder", text=True)


@dataclass(frozen=True)
class ScoreOptions(Options):
    """Root of ``conf/score/score.yaml``: a run folder, or bare files of any system."""

    run: str | None = option(None, "run folder; or instead of it the files below", text=True)
    edited: str | None = option(None, "edited clip: a video, or a folder of numbered pictures", text=True)
    source: str | None = option(None, "source clip: the same frames at the same size", text=True)
    mask: str | None = option(None, "region of the edit: a video or a folder, white inside", text=True)
    object: int | None = option(None, "number of the mask's object to measure; null: all", low=1, high=65_535)
    mask_inverted: bool = option(False, "the mask is black inside")
    target_image: str | None = option(None, "picture of the target", text=True)
    matte: str | None = option(None, "silhouette in the picture, if that has no alpha", text=True)
    source_prompt: str | None = option(None, "description of the source", text=True)
    target_prompt: str | None = option(None, "description of the edit", text=True)
    annotations: str | None = option(None, "folder of the source object's masks, one per frame (DAVIS)", text=True)
    judge: str | None = option("shipped", JUDGE_HELP, text=True)
    clip: str | None = option(None, CLIP_HELP, text=True)
    clip_sha256: str | None = option(None, "hash that the CLIP's weights must have")
    dino: str | None = option(None, "DINO: folder or cached hub name; null: none", text=True)
    pickscore: str | None = option(None, "PickScore: folder or cached hub name; null: none", text=True)
    out: str | None = option(None, "JSON file for the results, in the format of metrics.json", text=True)
    quiet: bool = option(False, "print the paths of the files alone")
    json: bool = option(False, "print one line of JSON: figures, warnings, seconds, or the error")


@dataclass(frozen=True)
class LeaderboardOptions(Options):
    """Root of ``conf/leaderboard/leaderboard.yaml``."""

    runs: str = option(MISSING, "run folders; ** matches any depth", text=True)
    out: str = option(".", "folder for the leaderboard's files", text=True)
    versus: str = option(OURS, "method that the others are compared with", text=True)
    metrics: list[str] = option([], "columns; empty: all that were measured")
    title: str = option("Leaderboard", "heading", text=True)
    clips: int = option(12, "cases whose clips the page plays; 0: none", low=0)
    note: str = option("", "a line below the heading: command, commit, hardware", text=True)


@dataclass(frozen=True)
class StudyOptions(Options):
    """Root of ``conf/study/study.yaml``."""

    sweep: str = option(MISSING, "folder of the sweep (its hydra.sweep.dir)", text=True)
    out: str = option(MISSING, "folder for README.md, study.json and figure.png", text=True)
    cases: str = option("*", "clips by name; * matches any characters", text=True)
    metrics: list[str] = option(list(STUDY_METRICS), "columns, if measured; the first also case by case")


@dataclass
class MethodOptions(Options, group="define.NAME"):
    """A method of the benchmark: what differs from the default edit."""

    experiment: str | None = option(None, "file of conf/experiment")
    overrides: list[str] = option([], "overrides as for tave.edit")
    oracle: bool = option(False, "is given the true region, where it is known")


@dataclass(frozen=True)
class SetOptions(Options, group="set"):
    """A set of cases."""

    kind: str = option("drawn", "cases of the drawn world, or a folder of your own", choices=("drawn", "folder"))
    which: str = option("full", "drawn: which list", choices=("full", "small", "study"))
    folder: str | None = option(None, "where cases.json is, or is drawn; null: FOLDER/cases", text=True)
    size: int = option(96, "drawn: side of the frames in px", low=32, high=1024)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "folder" and not self.folder:
            raise OptionError("set.folder is not set: give set.folder=FOLDER, which holds cases.json or cases.yaml")


@dataclass(frozen=True)
class BenchmarkOptions(Options):
    """Root of ``conf/benchmark.yaml``."""

    set: SetOptions = option(SetOptions, "the cases")
    folder: str = option(MISSING, "where runs and results go", text=True)
    methods: list[str] = option([], "methods and controls to run, in this order")
    define: dict[str, MethodOptions] = option({}, "methods by name: {experiment, overrides, oracle}")
    overrides: list[str] = option([], "overrides as for tave.train, for every case")
    seeds: list[int] = option([33], "seeds; each case runs under each", low=0, high=2**31 - 1)
    only: list[str] = option([], "cases by name; empty: all")
    workers: int = option(1, "cases in parallel, each with its share of the threads", low=1, high=1024)
    clip: str | None = option(None, CLIP_HELP, text=True)


def quantity(name: str, text: str, units: Mapping[str, float]) -> float:
    """A number with a unit, as ``30d``, in the unit whose factor is 1; :class:`OptionError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text)
    known = {unit.lower(): factor for unit, factor in units.items()}
    if match is None or match[2].lower() not in known:
        raise OptionError(f"{name}={text} can't be read: give a number and one of {', '.join(units)}")
    return float(match[1]) * known[match[2].lower()]


@dataclass(frozen=True)
class CacheOptions(Options):
    """Root of ``conf/cache.yaml``."""

    action: str = option("list", "list what is there, verify that it is whole, or prune it", choices=CACHE_ACTIONS)
    cache: str = option("outputs/cache", "folder of the stages' cached results", text=True)
    runs: str = option("outputs", "folder below which the runs lie that refer to them", text=True)
    older: str | None = option(None, "prune what was not used for so long: 12h, 30d, 8w")
    keep: str | None = option(None, "prune the least recently used until so much is left: 500MB, 10GB")
    unused: bool = option(False, "prune what no run below runs=FOLDER refers to")
    delete: bool = option(False, "prune removes; false: it only says what would go")

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.seconds, self.bytes
        asked = [key for key in ("older", "keep", "unused", "delete") if getattr(self, key)]
        if self.action != "prune" and asked:
            raise OptionError(f"{asked[0]} is for action=prune: add that, or leave it out")
        if self.action == "prune" and not {*asked} - {"delete"}:
            raise OptionError("action=prune needs to know what: give older=30d, keep=10GB or unused=true")

    @property
    def seconds(self) -> float:
        """``older`` in seconds, infinite if it is null."""
        return math.inf if self.older is None else quantity("older", self.older, TIMES)

    @property
    def bytes(self) -> float:
        """``keep`` in bytes, infinite if it is null."""
        return math.inf if self.keep is None else quantity("keep", self.keep, SIZES)


@dataclass(frozen=True)
class LimitOptions(Options, group="limits"):
    """What the app takes from its users."""

    queue: int = option(32, "jobs that wait, of all users", low=1, high=10_000)
    each: int = option(4, "jobs of one user that wait or run", low=1, high=10_000)
    megabytes: int = option(200, "size of an upload in MB", low=1, high=100_000)
    uploads: int = option(40, "uploads of one user", low=1, high=100_000)
    frames: int = option(64, "video.frames of a job", low=1, high=10_000)
    side: int = option(1024, "sides of a job's frames in px", low=8, high=16_384)
    steps: int = option(1000, "tuning.steps of a job", low=0, high=1_000_000)
    keep: str = option("24h", "uploads and jobs are removed after so long: 90min, 24h, 7d")

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.seconds

    @property
    def seconds(self) -> float:
        """``keep`` in seconds."""
        return quantity("limits.keep", self.keep, TIMES)


@dataclass(frozen=True)
class AppOptions(Options):
    """Root of ``conf/app.yaml``."""

    host: str = option("127.0.0.1", "address to listen on; another than this machine's own needs a token", text=True)
    port: int = option(7860, "port to listen on", low=1, high=65_535)
    token: str | None = option(None, "secret that users give; null: none on this machine, else made and printed")
    folder: str = option("outputs/app", "where uploads, jobs and the cache are", text=True)
    backbones: dict[str, str] = option({}, "further backbones by name, each with its weights' folder")
    adapters: dict[str, str] = option({}, "ip_adapter: the adapter's folder by the backbone's name")
    limits: LimitOptions = option(LimitOptions, "what is taken from users")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token is not None and not re.fullmatch(r"[A-Za-z0-9_-]{16,200}", self.token):
            raise OptionError("token: give 16 or more letters, digits, '-' and '_', or leave it out")

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class BatchOptions(Options):
    """Root of ``conf/batch.yaml``."""

    jobs: str = option(MISSING, "JSON file with a list of jobs", text=True)
    out: str = option("outputs/batch", "folder for the jobs' run folders, by name", text=True)
    cache: str = option("outputs/cache", "folder of the stages' cached results", text=True)
    dry_run: bool = option(False, "check every input and print each job's plan; run nothing")
    backbones: dict[str, str] = option({}, "further backbones by name, each with its weights' folder")
    adapters: dict[str, str] = option({}, "ip_adapter: the adapter's folder by the backbone's name")


@dataclass(frozen=True)
class DoctorOptions(Options):
    """Root of ``conf/doctor.yaml``. It has the groups that a file of conf/backbone sets."""

    backbone: BackboneOptions = option(BackboneOptions, "weights to try, beside those that are looked for")
    video: ReadOptions = option(ReadOptions, "set by backbone=NAME")
    tuning: TuningOptions = option(TuningOptions, "set by backbone=NAME")
    inversion: InversionOptions = option(InversionOptions, "set by backbone=NAME")
    correction: CorrectionOptions = option(CorrectionOptions, "set by backbone=NAME")
    sampler: SamplerOptions = option(SamplerOptions, "set by backbone=NAME")
    segmenter: str | None = option(None, "segmentation network to try: folder or cached hub name", text=True)
    edit: bool = option(True, "try a small edit as well")


@dataclass(frozen=True)
class FootprintOptions(Options):
    """Root of ``conf/footprint.yaml``."""

    backbones: list[str] = option(["sd21_unclip", "sd15_ip_adapter"], "full-size backbones", choices=FULL_SIZE)
    presets: list[str] = option(list(PRESETS), "files of conf/memory", choices=PRESETS)
    frames: list[int] = option([8, 24], "numbers of frames", low=1, high=10_000)
    sizes: list[int] = option([512, 768], "sides of square frames in px, multiples of 64", low=64, high=4096)
    trainables: str = option("patent", "which parameters train", choices=TRAINABLES)
    measure: bool = option(False, "measure on the CUDA device instead of counting from shapes")

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(side % 64 for side in self.sizes):
            raise OptionError(f"sizes={list(self.sizes)}: give multiples of 64")


@dataclass(frozen=True)
class PartOptions(Options):
    """The training of one network."""

    steps: int = option(1000, "optimizer steps", low=1)
    batch: int = option(16, "pictures per step", low=1)
    lr: float = option(1e-3, "peak learning rate", above=0)


@dataclass(frozen=True)
class PretrainOptions(Options):
    """Root of ``conf/pretrain.yaml``: the drawn world's backbone and judge, from random weights."""

    folder: str = option("outputs/pretrain", "where data and checkpoints go", text=True)
    stages: list[str] = option(list(STAGES), "stages to run, in this order", choices=STAGES)
    seed: int = option(0, "seed of all random numbers", low=0, high=2**31 - 1)
    size: int = option(96, "side of the frames in px", low=32, high=1024)
    count: int = option(24_000, "pictures to draw, and half as many others for the judge", low=2)
    crop: int = option(48, "side in px of the crops that the autoencoder trains on", low=8, high=1024)
    threads: int = option(0, "number of torch threads; 0: PyTorch's default", low=0, high=1024)
    precision: str = option("32-true", "Lightning's precision; bf16-mixed is fast on few CPUs", choices=PRECISIONS)
    start: str = option("", "folder of shipped weights to continue training from; empty: random weights", text=True)
    workers: int = option(2, "processes that draw", low=1, high=1024)
    target: str = option("tave/roadside/weights", "where the stage ship writes", text=True)
    exam_frames: int = option(300, "held-out frames for the exam of autoencoder, CLIP and judge", low=1)
    exam_samples: int = option(150, "pictures that the UNet's exam samples for each kind of condition", low=1)
    autoencoder: PartOptions = option(PartOptions(4000, 16, 1e-3), "training of the autoencoder")
    clip: PartOptions = option(PartOptions(2500, 64, 8e-4), "training of the conditioning CLIP")
    judge: PartOptions = option(PartOptions(2000, 64, 1e-3), "training of the judge")
    unet: PartOptions = option(PartOptions(9000, 24, 6e-4), "training of the UNet")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 16:
            raise OptionError(f"size={self.size}: give a multiple of 16")
        if self.crop % 4 or self.crop > self.size:
            raise OptionError(f"crop={self.crop}: give a multiple of 4, at most size={self.size}")
