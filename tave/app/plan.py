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
LABELS = {"encoding": "encoding the clip", "tuning": "tuning", "inversion": "inversion"}
LABELS |= {"reconstruction": "reconstruction", "masking": "mask", "sampling": "sampling", "decoding": "decoding"}
LABELS |= {"writing": "writing", "metrics": "measuring"}
STARTING = 12.0  # s until the first stage, on two cores: Python, libraries, weights
# Seconds for each step, frame and megapixel of the drawn world's backbone: runs on 8 frames of 96 px, two cores of an
# x86_64 CPU. A job that was measured here replaces them; other models have no estimate until then.
SHIPPED = {"encoding": 5.4, "tuning": 3.4, "inversion": 2.7, "reconstruction": 2.7, "masking": 6.8}
SHIPPED |= {"sampling": 4.9, "decoding": 3.4, "writing": 2.0, "metrics": 27.0}
SHIPPED_MB = 1500.0  # resident memory of the same run


@dataclass(frozen=True)
class Stage:
    """One stage. ``steps``: of its bar; ``seconds``: expected, None if nothing like it was measured here;
    ``remembered``: its result is in the cache."""

    name: str
    steps: int
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
            told = "remembered" if stage.remembered else "unknown" if stage.seconds is None else _about(stage.seconds)
            yield f"  {LABELS.get(stage.name, stage.name):<18} {stage.steps:>5} {_plural(stage.steps)}  {told}"
        memory = "unknown" if self.megabytes is None else f"{self.megabytes / 1000:.1f} GB"
        time = "unknown until a job of this model has run here" if self.seconds is None else _about(self.seconds)
        yield f"  expected: {time}, memory {memory}; {self.frames} frames of {self.size[0]}x{self.size[1]}"


def _plural(steps: int) -> str:
    return "step " if steps == 1 else "steps"


def _about(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.1f} min"


def steps_of(options: TrainOptions, *, tuned: bool) -> dict[str, int]:
    """The stages of a run, or of another edit of a ``tuned`` clip, in their order, with their steps."""
    steps, region = options.inversion.steps, options.video.mask is not None or options.mask.region == "whole"
    part = max(1, round((options.mask.steps[1] - options.mask.steps[0]) * steps))
    passes = 2 if options.reference.mode in ("joint", "in_context") else 1
    found = {"encoding": 1}
    found |= {} if tuned or not options.tuning.steps else {"tuning": options.tuning.steps}
    found |= {"inversion": steps, "reconstruction": steps}
    found |= {} if region else {"masking": part * passes}
    found |= {"sampling": steps, "decoding": 1, "writing": 1}
    return found | ({"metrics": 1} if options.metrics.enabled else {})


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
    amount, known, model = shape[0] * shape[-1] * shape[-2] / 1e6, set(remembered), model_of(options)
    shipped = SHIPPED if model.startswith("roadside/32-true/full/False/cpu") else {}
    rates = {name: (rate, SHIPPED_MB) for name, rate in shipped.items()} | measured(rates_at, model)
    stages = []
    for name, steps in steps_of(options, tuned=tuned).items():
        seconds = rates[name][0] * steps * amount if name in rates else None
        stages.append(Stage(name, steps, seconds, name in known))
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
    found = footprint(SHAPES[options.backbone.name], options.memory, options.precision, shape[0], side)
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


def learn(folder: Path, plan: Plan, spent: Mapping[str, tuple[float, float]]) -> None:
    """Keep what the stages of a finished job took: stage -> seconds, peak in MB."""
    amount = plan.frames * plan.size[0] * plan.size[1] / 1e6
    rates = {
        f"{stage.name}@{plan.model}": [round(spent[stage.name][0] / (stage.steps * amount), 6), spent[stage.name][1]]
        for stage in plan.stages
        if stage.name in spent
    }
    with claimed(folder / RATES, UPDATE):
        write_json(folder / RATES, _kept(folder / RATES) | rates)


def _kept(path: Path) -> dict[str, Any]:
    """The rates in a file; none if it can't be read, since they are measured anew."""
    try:
        return read_json(path) if path.is_file() else {}
    except FileError:
        return {}
