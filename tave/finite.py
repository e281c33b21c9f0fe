"""Guards against NaN and infinity: a stage stops with its name and step, and nothing non-finite is stored."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

EVERY = 16  # values of an accelerator between two readings: for each the host waits, and launches nothing meanwhile
PRECISION = "set trainer.precision=32-true and memory=full, or fetch the weights again"  # where nothing is tuned yet
REMEDY = "set trainer.precision=32-true and memory=full, or tune again with a lower tuning.lr"


class NonFiniteError(ValueError):
    """A value is NaN or infinite; the message names stage, step and remedy."""


class Watch:
    """Checks the values of a stage's steps: on a CPU at once, on an accelerator :data:`EVERY` of them together."""

    def __init__(self, stage: str, remedy: str = REMEDY) -> None:
        self.stage, self.remedy = stage, remedy
        self._waiting: list[tuple[int, str, Tensor]] = []

    def add(self, step: int, name: str, value: Tensor) -> None:
        """Note ``value``, of any shape, at ``step`` (from 1). Raises :class:`NonFiniteError`, perhaps of an earlier
        step.
        """
        self._waiting.append((step, name, torch.isfinite(value.detach()).all()))
        if value.device.type == "cpu" or len(self._waiting) >= EVERY:
            self.read()

    def read(self) -> None:
        """Read what waits: to be called after the last step. Raises :class:`NonFiniteError` for the first bad value."""
        waiting, self._waiting = self._waiting, []
        good = torch.stack([flag for *_, flag in waiting]).tolist() if waiting else []
        for (step, name, _), fine in zip(waiting, good, strict=True):
            if not fine:
                raise NonFiniteError(f"{self.stage}, step {step}: the {name} is not finite; {self.remedy}")


def check_finite(stage: str, tensors: Mapping[str, Tensor], remedy: str = REMEDY) -> None:
    """Raise :class:`NonFiniteError`, which names ``stage`` and the tensor, if one holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(f"{stage}: the {name} is not finite; {remedy}")
