"""What a job will do: its stages, what of them is remembered, and the seconds and memory that are to be expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tave.config import TrainOptions
from tave.files import FileError, read_json, write_json
from tave.locks import UPDATE, claimed

RATES = "rates.json"  # what stages took here
LABELS = {"locating": "first look", "encoding": "encoding the clip", "tuning": "tuning", "inversion": "inversion"}
LABELS |= {"reconstruction": "reconstruction", "masking": "mask", "sampling": "sampling", "decoding": "decoding"}
LABELS |= {"writing": "writing", "metrics": "measuring", "report": "report"}
STARTING = 12.0  # s until the first stage, on two cores: Python, libraries, weights
# Seconds for each step, frame and megapixel of the drawn world's backbone: runs on 8 frames of 96 px, two cores of an
# x86_64 CPU. A job that was measured here replaces them; other models have no estimate until then.
SHIPPED = {"encoding": 5.4, "tuning": 3.4, "inversion": 2.7, "reconstruction": 2.7, "masking": 6.8}
SHIPPED |= {"sampling": 4.9, "decoding": 3.4, "writing": 2.0, "metrics": 27.0}
SHIPPED |= {"report": 3.0}  # from its share of a later run beside other work
SHIPPED_MB = 1500.0  # resident memory of the same run
IN_WINDOWS = ("inversion", "reconstruction", "masking", "sampling")  # stages whose steps evaluate the whole clip


@dataclass(frozen=True)
class Stage:
    """One stage. ``steps``: of its bars; ``megapixels``: of the frames that all its steps together work on;
    ``seconds``: expected, None if nothing like it was measured here; ``remembered``: its result is in the cache."""

    name: str
    steps: int
    megapixels: float = 1.0
    seconds: float | None = None
    remembered: bool = False


@dataclass(frozen=True)
class Plan:
    """``model``: what its rates are kept under; ``megabytes``: expected peak, of the GPU if there is one, or None."""

    stages: tuple[Stage, ...]
    frames: int
    size: tuple[int, int]
    model: str
    megabytes: float | None = None
    warnings: tuple[str, ...] = ()

    @staticmethod
    def read(content: Mapping[str, Any]) -> Plan:
        """A plan out of the JSON of its ``asdict``."""
        stages, size = tuple(Stage(**stage) for stage in content["stages"]), tuple(content["size"])
        return Plan(**{**content, "stages": stages, "size": size, "warnings": tuple(content["warnings"])})

    @property
    def seconds(self) -> float | None:
        """Expected in all, without what is remembered; None if a stage is unknown."""
        each = [0.0 if stage.remembered else stage.seconds for stage in self.stages]
        return None if None in each else STARTING + sum(each)  # type: ignore[arg-type]

    def lines(self) -> Iterable[str]:
        """For people: a line for each stage, then what is to be expected."""
        for stage in self.stages:
            shown = "remembered" if stage.remembered else "unknown" if stage.seconds is None else _about(stage.seconds)
            yield f"  {LABELS.get(stage.name, stage.name):<18} {stage.steps:>5} {_plural(stage.steps)}  {shown}"
        memory = "unknown" if self.megabytes is None else f"{self.megabytes / 1000:.1f} GB"
        time = "unknown until a job of this model has run here" if self.seconds is None else _about(self.seconds)
        yield f"  expected: {time}, memory {memory}; {self.frames} frames of {self.size[0]}x{self.size[1]}"


def _plural(steps: int) -> str:
    return "step " if steps == 1 else "steps"


def _about(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.1f} min"


def steps_of(options: TrainOptions, *, tuned: bool, looks: bool = False) -> dict[str, int]:
    """The stages of a run, or of another edit of a ``tuned`` clip, in their order, with their steps.

    ``looks``: it begins with a first look at whole frames (:mod:`tave.crop`), which encodes, inverts and compares.
    """
    steps, edits = options.inversion.steps, options.video.requests().values()
    searched = 0 if options.mask.region == "whole" else sum(edit.mask is None for edit in edits)
    part = max(1, round((options.mask.steps[1] - options.mask.steps[0]) * steps))
    compared = part * (2 if options.reference.mode in ("joint", "in_context") else 1)
    found = {"locating": searched * (1 + steps + compared)} if looks else {}
    found |= {"encoding": 1}
    found |= {} if tuned else {"tuning": options.tuning.steps}
    found |= {"inversion": steps, "reconstruction": steps, "masking": searched * compared}
    found |= {"sampling": len(edits) * steps, "decoding": len(edits), "writing": len(edits)}
    found |= {"metrics": int(options.metrics.enabled), "report": int(options.report)}
    return {name: count for name, count in found.items() if count}


def frames_of(options: TrainOptions, count: int) -> dict[str, int]:
    """Stage -> frames that each of its steps works on, in a clip of ``count`` frames (docs/long_clips.md).

    Tuning draws a window for each step and a first look takes as many frames; other steps of the network take all
    windows, with the frames that they share; what is left out here takes the clip's own frames.
    """
    from tave.windows import windows

    seen = sum(len(window.frames) for window in windows(count, options.window.frames, options.window.overlap))
    once = min(count, options.window.frames)
    return {"locating": once, "tuning": once} | dict.fromkeys(IN_WINDOWS, seen)


def model_of(options: TrainOptions) -> str:
    """What a stage's rate depends on, beside frames and size."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    name = options.backbone.name or Path(options.backbone.path or options.backbone.family).name
    return f"{name}/{options.precision}/{options.memory.weights}/{options.memory.gradient_checkpointing}/{device}"


def planned(
    options: TrainOptions, shape: tuple[int, ...], rates_at: Path, *, tuned: bool, remembered: Iterable[str] = ()
) -> Plan:
    """The plan of a run on a clip of ``shape`` `f 3 H W`; ``remembered``: the stages whose results are stored;
    ``rates_at``: the folder in which :func:`learn` keeps what stages take."""
    from tave.inputs import first_view

    pixels, known, model = shape[-1] * shape[-2] / 1e6, set(remembered), model_of(options)
    shipped = SHIPPED if model.startswith("roadside/32-true/full/False/cpu") else {}
    rates = {name: (rate, SHIPPED_MB) for name, rate in shipped.items()} | measured(rates_at, model)
    if {"inversion", "masking"} <= rates.keys():  # of which a first look consists
        rates.setdefault("locating", max(rates["inversion"], rates["masking"]))
    stages, frames = [], frames_of(options, shape[0])
    for name, steps in steps_of(options, tuned=tuned, looks=not tuned and first_view(options) is not None).items():
        amount = steps * frames.get(name, shape[0]) * pixels
        stages.append(Stage(name, steps, amount, rates[name][0] * amount if name in rates else None, name in known))
    peak = max((megabytes for _, megabytes in rates.values()), default=None) or counted(options, shape)
    return Plan(tuple(stages), shape[0], (shape[-1], shape[-2]), model, peak)


def counted(options: TrainOptions, shape: tuple[int, ...]) -> float | None:
    """Peak in MB of a full-size model, counted from its shapes (:mod:`tave.counting`); None for others."""
    from tave.config import FULL_SIZE
    from tave.fitting import LIBRARIES

    if options.backbone.name not in FULL_SIZE:
        return None
    from tave.counting import SHAPES, footprint

    side = max(shape[-2:])
    seen = min(shape[0], options.window.frames)
    found = footprint(SHAPES[options.backbone.name], options.memory, options.precision, seen, side)
    return (found.peak + LIBRARIES) / 1e6


def measured(folder: Path, model: str) -> dict[str, tuple[float, float]]:
    """Stage -> seconds for each step, frame and megapixel, and peak in MB, of the last job of this ``model`` here."""
    found = {}
    for key, value in _kept(folder / RATES).items():
        name, _, of = key.partition("@")
        if (
            of == model
            and isinstance(value, list)
            and len(value) == 2
            and all(isinstance(x, int | float) for x in value)
        ):
            found[name] = (float(value[0]), float(value[1]))
    return found


def note(stages: dict[str, dict[str, Any]], event: Mapping[str, Any]) -> None:
    """Add an event of a stage to what was seen: stage -> done, total, seconds, peak_mb; one that runs twice adds up."""
    empty = {"done": 0, "total": 0, "seconds": 0.0, "peak_mb": 0.0, "before": (0, 0.0)}
    stage = stages.setdefault(event["stage"], empty)
    done, seconds = stage["before"]
    stage |= {"done": done + event["done"], "seconds": seconds + event["seconds"]}
    stage["total"], stage["peak_mb"] = done + (event["total"] or 0), max(stage["peak_mb"], event["peak_mb"])
    if event["over"]:
        stage["before"] = stage["done"], stage["seconds"]


def learn(folder: Path, plan: Plan, seen: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep what the stages of a finished job took, as :func:`note` has it, by the steps that ran."""
    rates = {}
    for stage in plan.stages:
        if (of := seen.get(stage.name)) and of["done"]:
            rate = of["seconds"] / of["done"] * stage.steps / stage.megapixels
            rates[f"{stage.name}@{plan.model}"] = [round(rate, 6), of["peak_mb"]]
    with claimed(folder / RATES, UPDATE):
        write_json(folder / RATES, _kept(folder / RATES) | rates)


def _kept(path: Path) -> dict[str, Any]:
    """The rates in a file; none if it can't be read, since they are measured anew."""
    try:
        return read_json(path) if path.is_file() else {}
    except FileError:
        return {}
