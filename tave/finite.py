"""Guards against NaN and infinity, and a word about a loss that only grows.

Values are reduced to one number on their device and read together: reading a GPU's number makes the host wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

EVERY = 16  # steps of an accelerator between two readings, each of which costs the time of one launch queue to refill
REMEDY = "set trainer.precision=32-true and memory=full, or tune again with a lower tuning.lr"
# In standard deviations of chance: losses without a trend exceed it once in 30,000 tunings. Fewer than 18 steps can't.
GROWN = 4.0


class NonFiniteError(ValueError):
    """A value is NaN or infinite; the message names stage, step and remedy."""


class Watch:
    """Checks values of a stage's steps: on a CPU at once, on an accelerator every :data:`EVERY` values.

    ``seen`` maps each name to the largest magnitudes that were read, step by step; a loss is its own.
    """

    def __init__(self, stage: str, remedy: str = REMEDY) -> None:
        self.stage, self.remedy = stage, remedy
        self.seen: dict[str, list[float]] = {}
        self._waiting: list[tuple[int, str, Tensor]] = []

    def add(self, step: int, name: str, value: Tensor) -> None:
        """Note ``value``, of any shape, at ``step`` (from 1). Raises :class:`NonFiniteError`, perhaps of an earlier
        step.
        """
        self._waiting.append((step, name, value.detach().abs().amax()))  # NaN and infinity pass through both
        if value.device.type == "cpu" or len(self._waiting) >= EVERY:
            self.read()

    def read(self) -> None:
        """Read what waits: to be called after the last step. Raises :class:`NonFiniteError` for the first bad one."""
        waiting, self._waiting = self._waiting, []
        sizes = torch.stack([size for *_, size in waiting]).tolist() if waiting else []
        for (step, name, _), size in zip(waiting, sizes, strict=True):
            if not math.isfinite(size):
                raise NonFiniteError(f"{self.stage}, step {step}: the {name} is not finite; {self.remedy}")
            self.seen.setdefault(name, []).append(size)


def check_finite(stage: str, tensors: Mapping[str, Tensor], remedy: str = REMEDY) -> None:
    """Raise :class:`NonFiniteError`, which names ``stage`` and the tensor, if one holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(f"{stage}: the {name} is not finite; {remedy}")


def growth(losses: Sequence[float]) -> float:
    """How surely ``losses`` grow: the rank correlation of loss and step, in standard deviations of chance.

    A step's loss varies by orders of magnitude with its random t, so single losses and their means say little. Ranks
    do: losses without a trend come in any order with equal probability, whatever their distribution, and then
    Spearman's correlation has mean 0 and variance ``1 / (n - 1)``.
    """
    n = len(losses)
    if n < 2:
        return 0.0
    ranks = torch.tensor(losses, dtype=torch.float64).argsort(stable=True).argsort().double()
    centred, steps = ranks - ranks.mean(), torch.arange(n).double() - (n - 1) / 2
    return float((centred * steps).mean() / steps.square().mean()) * (n - 1) ** 0.5


def growth_note(losses: Sequence[float], lr: float) -> str:
    """A warning if the loss only grew over the tuning, else ""."""
    if growth(losses) <= GROWN:
        return ""
    third = len(losses) // 3
    first, last = (float(torch.tensor(part).median()) for part in (losses[:third], losses[-third:]))
    return (
        f"the loss only grew over the tuning (median of the first third {first:.3g}, of the last {last:.3g}): "
        f"lower tuning.lr (now {lr:g})"
    )
