"""The job description of page, HTTP and files: a closed list of keys, most of them options of a run by their own names.

From the network the values of :data:`FILES` are ids of uploads; from a file on the command line they are paths.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from tave.config import (
    PRESETS,
    LimitOptions,
    OptionError,
    TrainOptions,
    check_name,
    check_option,
    choice,
    nearest,
    option,
    within,
)
from tave.keys import choices_of, option_at, quoted

FILES = ("video.path", "video.target_image", "video.matte", "video.mask")
TARGET = (*FILES[1:], "video.target_prompt")
TEXTS = ("video.source_prompt", "video.target_prompt")
# What another edit of a tuned clip may change; the others belong to the tuned clip.
EDITING = (*TARGET, "mask.threshold", "mask.fixed", "mask.quantile", "mask.dilate", "correction.enabled")
EDITING += ("sampler.guidance_scale", "reference.height_scale", "reference.heading")
KEYS = ("video.path", "video.source_prompt", "video.frames", "video.start", "video.stride", "video.width")
KEYS += ("video.height", "video.fit", "tuning.steps", "inversion.steps", "seed", *EDITING)
EXAMPLES = tuple(name for name in choices_of("video") if "_to_" in name and "/" not in name)
LONGEST = 500  # characters of a text; the encoders read far less
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


@dataclass(frozen=True)
class Job:
    """One edit. ``values``: option of a run -> value, the keys of :data:`KEYS`; what is left out has its default.

    The clip is ``video.path``, or that of an ``example``, or one that an earlier job has ``tuned``.
    """

    name: str = option("edit", "name of the job, and of its folder in a batch")
    example: str | None = option(None, "a named clip with its target, instead of video.*", choices=EXAMPLES)
    tuned: str | None = option(None, "an earlier job (its id; in a batch its name) whose tuned clip is edited again")
    backbone: str | None = option(None, "pretrained model by name; null: roadside, or that of the tuned clip")
    memory: str | None = option(None, "memory preset by name; null: auto, or that of the tuned clip", choices=PRESETS)
    mask_stays: bool = option(False, "video.mask is one picture: the object stays there in every frame")
    values: Mapping[str, Any] = field(default_factory=dict, metadata={})

    def described(self) -> dict[str, Any]:
        """The job as its JSON, without what has its default."""
        own = {key: value for key, value in asdict(self).items() if key != "values"}
        defaults = asdict(Job())
        return {key: value for key, value in own.items() if value != defaults[key]} | dict(self.values)


OWN = {entry.name: entry for entry in fields(Job) if entry.name != "values"}


def _field(key: str) -> tuple[Field[Any], tuple[type, ...]]:
    """The definition of a job's key, and the types that its value may have."""
    if key in OWN:
        entry, hint = OWN[key], get_type_hints(Job)[key]
    else:
        place = option_at(TrainOptions, key)
        assert place is not None, key
        group, _, name = key.rpartition(".")
        kind = get_type_hints(TrainOptions)[group] if group else TrainOptions
        entry, hint = place.entry, get_type_hints(kind)[name]
    if key in FILES:
        return entry, (str,) if key == "video.path" else (str, NoneType)
    return entry, get_args(hint) or (hint,)


def schema(backbones: Sequence[str] | None = None) -> dict[str, Any]:
    """The JSON schema of a job; ``backbones``: the names that are offered."""
    properties: dict[str, Any] = {}
    for key in (*OWN, *KEYS):
        entry, kinds = _field(key)
        about, names = entry.metadata, [JSON_TYPES[kind] for kind in kinds]
        made: dict[str, Any] = {"type": names[0] if len(names) == 1 else names, "description": about["help"]}
        made |= {"enum": [*about["choices"], *([None] * (NoneType in kinds))]} if about["choices"] else {}
        bounds = {"minimum": about["low"], "maximum": about["high"], "exclusiveMinimum": about["above"]}
        made |= {name: bound for name, bound in bounds.items() if bound is not None}
        made |= {"maxLength": LONGEST} if str in kinds and not about["choices"] else {}
        properties[key] = made
    if backbones is not None:
        properties["backbone"]["enum"] = [*backbones, None]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A job of tave"}
    return head | {"type": "object", "properties": properties, "additionalProperties": False}


def read_job(content: Any, backbones: Sequence[str]) -> Job:
    """A job out of parsed JSON. Raises :class:`OptionError`, in one line, for all that is not a job.

    ``backbones``: the names that may be asked for.
    """
    if not isinstance(content, dict):
        raise OptionError('a job is a JSON object, such as {"example": "bus_to_suv"}')
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in OWN and key not in KEYS:
            raise OptionError(f"unknown key {str(key)[:80]!r}: {nearest(str(key)[:80], [*OWN, *KEYS])}")
        values[key] = _checked(key, value)
    job = Job(**{key: values.pop(key) for key in list(values) if key in OWN}, values=values)
    check_name(f"name={job.name!r}", job.name)
    if job.backbone is not None:
        choice("backbone", job.backbone, backbones)
    _check_sources(job)
    return job


def _checked(key: str, value: Any) -> Any:
    entry, kinds = _field(key)
    given = float if type(value) is int and float in kinds and int not in kinds else type(value)
    if given not in kinds:
        expected = " or ".join(KINDS[kind] for kind in kinds)
        raise OptionError(f"{key}={json.dumps(value)[:80]}: give {expected}")
    if isinstance(value, str):
        if len(value) > LONGEST:
            raise OptionError(f"{key} has {len(value)} characters: give at most {LONGEST}")
        if not value.strip() or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
            raise OptionError(f"{key}={value[:80]!r} is empty or has control characters: give plain text")
    if entry.metadata:
        check_option(key, value, entry)
    return value


def _check_sources(job: Job) -> None:
    """One clip, and what belongs to it."""
    given = [key for key in ("video.path", "example", "tuned") if job.values.get(key, getattr(job, key, None))]
    if len(given) != 1:
        found = f"{' and '.join(given)} exclude each other" if given else "no clip"
        raise OptionError(f"{found}: give video.path, or example, or tuned")
    if given == ["video.path"]:
        needed = [key for key in (*TEXTS, "video.target_image") if not job.values.get(key)]
        if needed:
            raise OptionError(f"{', '.join(needed)} not set: give {needed[0]} (a picture and both descriptions)")
    allowed = set(EDITING) if job.tuned else {key for key in KEYS if key not in (*FILES, *TEXTS)}
    if given != ["video.path"] and (wrong := sorted(job.values.keys() - allowed)):
        reason = "was decided when the clip was tuned" if job.tuned else "is that of the example"
        raise OptionError(f"{wrong[0]} {reason}: leave it out, or give video.path")
    if job.tuned:
        if job.backbone:
            raise OptionError("backbone was decided when the clip was tuned: leave it out, or give video.path")
        if ("video.target_image" in job.values) != ("video.target_prompt" in job.values):
            raise OptionError("video.target_image and video.target_prompt belong together: give both, or neither")
    if job.mask_stays and not job.values.get("video.mask"):
        raise OptionError("mask_stays is about video.mask: give that too")


def check_limits(job: Job, limits: LimitOptions) -> None:
    """Raise :class:`OptionError` for a job that asks for more than the app's ``limits``."""
    bounds = {"video.frames": limits.frames, "video.width": limits.side, "video.height": limits.side}
    bounds |= {"tuning.steps": limits.steps, "video.start": 100_000}
    for key, most in bounds.items():
        if (value := job.values.get(key)) is not None:
            within(key, value, 0, most)


def inherited(job: Job, earlier: Job) -> Job:
    """``job``, an edit of the clip that ``earlier`` tuned, with the target of that where it names none."""
    if "video.target_image" in job.values:
        return job
    kept = {key: earlier.values[key] for key in TARGET if key in earlier.values and key not in job.values}
    stays = job.mask_stays or (earlier.mask_stays and "video.mask" in kept)
    return Job(**{**vars(job), "values": {**kept, **job.values}, "mask_stays": stays})


def same_maps(job: Job, earlier: Job) -> bool:
    """Whether ``job`` compares the same pictures as ``earlier``, whose clip it edits again: its maps are stored."""
    compared = {"video.target_image", "video.mask", "reference.height_scale", "reference.heading"}
    return not compared & job.values.keys() and not (compared - {"video.target_image"}) & earlier.values.keys()


def model_words(backbones: Mapping[str, str], adapters: Mapping[str, str]) -> dict[str, list[str]]:
    """Further words of tave.train for each backbone that is offered: where its weights are.

    The drawn world's gets a name, since its path would become part of what leaves the service.
    """
    found = {"roadside": ["backbone.name=roadside"]}
    for name, path in backbones.items():
        if name not in choices_of("backbone"):
            raise OptionError(f"backbones.{name} is not known: {nearest(name, choices_of('backbone'))}")
        found[name] = [f"backbone.path={quoted(path)}"] if path else []
        found[name] += [f"backbone.adapter={quoted(adapters[name])}"] if name in adapters else []
    return found


def words_of(job: Job, files: Mapping[str, str], example: str | None = None) -> list[str]:
    """The job as words of tave.train, or, with ``job.tuned``, of tave.edit; ``files``: the paths of its files.

    ``example``: the named clip that was tuned, if the job names no target of its own.
    """
    words = [f"memory={job.memory}"] if job.memory else []
    if not job.tuned:
        words += [f"backbone={job.backbone}"] if job.backbone else []
        words += [f"video={job.example or 'custom'}"]
    elif example and "video.target_image" not in job.values:
        words += _example_words(example)
    for key, value in job.values.items():
        if value is not None or key not in FILES:
            words.append(f"{key}={_word(files.get(key, value))}")
    return words


def _example_words(example: str) -> list[str]:
    """The edits of a named clip as words of tave.edit."""
    from tave.cli import compose_options

    found = []
    for name, entry in compose_options("train", [f"video={example}"]).video.edits.items():
        given = {key: value for key, value in vars(entry).items() if value is not None}
        found += [f"video.edits.{name}.{key}={quoted(value)}" for key, value in given.items()]
    return found


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value if re.fullmatch(r"[a-z_]+", value) and value != "null" else quoted(value)
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else str(value)
    )
