"""The noise levels of a run and the deterministic step between any two of them (docs/method.md, section 4).

A level is an index: 0 is the clean latent, T the noisiest. ``alpha`` is the scheduler's ``alphas_cumprod`` at a level.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from tave.config import choice

PREDICTION_TYPES = ("epsilon", "v_prediction")


class ScheduleError(ValueError):
    """A number of steps, or a scheduler, from which no list of levels can be made."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """T+1 levels, clean to noisy, the same list for inversion and for sampling.

    timesteps: T+1 ascending ints; ``timesteps[k]`` is the network's timestep at level k, and ``timesteps[0] = -1``
        since the clean level is never given to it.
    alphas: `T+1` float64 on the CPU; ``alphas[0]`` is the scheduler's ``final_alpha_cumprod`` (not always 1).
    """

    timesteps: list[int]
    alphas: Tensor

    @classmethod
    def from_scheduler(cls, scheduler: DDIMScheduler, steps: int) -> Schedule:
        """The levels at which ``scheduler`` would take ``steps`` steps; the scheduler itself is left as it was.

        Raises :class:`ScheduleError` if the scheduler's spacing has no such list of distinct timesteps.
        """
        most = int(scheduler.config["num_train_timesteps"])
        if not 1 <= steps <= most:
            raise ScheduleError(f"steps={steps} is out of range: set it between 1 and {most}")
        spaced = copy.deepcopy(scheduler)
        spaced.set_timesteps(steps)
        ascending = sorted(int(t) for t in spaced.timesteps)
        if len(set(ascending)) != steps or ascending[0] < 0 or ascending[-1] >= most:
            raise ScheduleError(f"steps={steps} does not fit the scheduler's {most} timesteps: choose fewer steps")
        clean = torch.as_tensor(scheduler.final_alpha_cumprod).reshape(1)
        alphas = torch.cat([clean.double().cpu(), scheduler.alphas_cumprod.double().cpu()[ascending]])
        return cls(timesteps=[-1, *ascending], alphas=alphas)

    @property
    def steps(self) -> int:
        """T, the number of steps between the clean level and the noisiest."""
        return len(self.timesteps) - 1


def to_noise(output: Tensor, z: Tensor, alpha: float | Tensor, prediction_type: str) -> Tensor:
    """The network's output at ``z`` as noise: `eps = sqrt(a) v + sqrt(1-a) z`, the identity for epsilon.

    output, z: `b ...` alike; alpha: a number, or one per `b`. Raises OptionError for an unknown parametrisation.
    """
    choice("prediction_type", prediction_type, PREDICTION_TYPES)
    if prediction_type == "epsilon":
        return output
    signal, noise_share = _roots(alpha, z)
    return signal * output + noise_share * z


def to_clean(z: Tensor, noise: Tensor, alpha: float | Tensor) -> Tensor:
    """The clean latent that ``z`` `b ...` implies: `x0 = (z - sqrt(1-a) eps) / sqrt(a)`; alpha as in to_noise."""
    signal, noise_share = _roots(alpha, z)
    return (z - noise_share * noise) / signal


def ddim_step(z: Tensor, noise: Tensor, alpha_from: float | Tensor, alpha_to: float | Tensor) -> Tensor:
    """Move ``z`` `b ...` to another level, up or down: `z_s = sqrt(a_s) x0 + sqrt(1-a_s) eps`."""
    return add_noise(to_clean(z, noise, alpha_from), noise, alpha_to)


def add_noise(clean: Tensor, noise: Tensor, alpha: float | Tensor) -> Tensor:
    """Return ``clean`` `b ...` at the level of ``alpha``: `sqrt(a) x0 + sqrt(1-a) eps`; alpha as in to_noise."""
    signal, noise_share = _roots(alpha, clean)
    return signal * clean + noise_share * noise


def training_target(clean: Tensor, noise: Tensor, alpha: float | Tensor, prediction_type: str) -> Tensor:
    """The network's target for :func:`add_noise`: the noise, or `v = sqrt(a) eps - sqrt(1-a) x0`.

    clean, noise: `b ...` alike; alpha: as in to_noise. Raises OptionError for an unknown parametrisation.
    """
    choice("prediction_type", prediction_type, PREDICTION_TYPES)
    if prediction_type == "epsilon":
        return noise
    signal, noise_share = _roots(alpha, clean)
    return signal * noise - noise_share * clean


def _roots(alpha: float | Tensor, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """`sqrt(a)` and `sqrt(1-a)`, taken in float64: at the clean end `1-a` is too small for single precision."""
    if not isinstance(alpha, Tensor) or alpha.ndim == 0:
        return math.sqrt(float(alpha)), math.sqrt(1.0 - float(alpha))
    wide = alpha.double().reshape(-1, *[1] * (like.ndim - 1))
    return wide.sqrt().to(like), (1.0 - wide).sqrt().to(like)
