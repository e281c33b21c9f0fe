"""What a figure is: a pure function of one clip, its facts, and the id that makes two figures comparable.

Each figure has a pure function and, beside it, a thin :class:`ClipMetric` with the same arguments. The class also holds the
facts (name, direction, unit, aggregation, version), so that a run's ``metrics.json`` and a training loop say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric


class MetricError(ValueError):
    """Inputs of a metric that can't belong together; the message names what differs."""


class ClipMetric(Metric):
    """The mean over clips of one figure a clip: ``update`` takes the pure function's arguments, once a clip.

    A clip without a figure (None) doesn't count; ``compute`` gives NaN where no clip counted.
    """

    figure: ClassVar[Callable[..., float | None]]  # a staticmethod in each subclass
    name: ClassVar[str]
    unit: ClassVar[str]
    over: ClassVar[str]  # how the clip's one number comes from its pixels and frames
    version: ClassVar[int] = 1  # moves with every change of formula
    higher_is_better: bool | None = None
    is_differentiable = False
    full_state_update = False
    total: Tensor
    clips: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("clips", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, *args: Any, **kwargs: Any) -> None:
        value = self.figure(*args, **kwargs)
        if value is not None:
            self.total += value
            self.clips += 1

    def compute(self) -> Tensor:
        return self.total / self.clips


@dataclass(frozen=True)
class Figure:
    """One measured number with what it takes to compare it. ``value`` is None where no pixel or frame counts."""

    value: Any
    id: str
    higher_is_better: bool | None
    unit: str


def figure(
    kind: type[ClipMetric], value: Any, *, by: str = "-", size: str = "-", over: str = "", reference: str = ""
) -> tuple[str, Figure]:
    """Name and :class:`Figure` of a ``value`` of ``kind``.

    Args:
        kind: the metric.
        value: what it measured.
        by: the encoder with its hash, or whose motion was followed.
        size: the resolution at which it looks.
        over: the region, where a metric has more than one.
        reference: suffix of a value that an edit is read against (``source``, ``ideal``, ...): it has no better direction.
    """
    name = f"{kind.name}_{reference}" if reference else kind.name
    parts = (name, by, size, f"{kind.over}, {over}" if over else kind.over, f"v{kind.version}")
    better = None if reference else kind.higher_is_better
    return name, Figure(value, "/".join(part.replace("/", ":") for part in parts), better, kind.unit)
