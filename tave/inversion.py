"""DDIM inversion: a clip's latents -> its whole trajectory up to noise, and back (METHOD 4)."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tave.conditions import Condition
from tave.denoiser import NoisePredictor
from tave.options import choice, within
from tave.schedule import Schedule, ddim_step

GATE_DB = 3.0  # METHOD 4: further below the autoencoder's round trip than this, an edit is doomed


class InversionError(ValueError):
    """Latents and levels that don't fit, or a reconstruction that a strict gate refuses."""


@dataclass(frozen=True)
class InversionOptions:
    """steps: T; refine: fixed-point refinements of each step; gate: what a poor reconstruction does;
    condition: source (prompt and frame), text (prompt alone) or empty (neither)."""

    steps: int = 50
    refine: int = 3
    gate: str = "warn"
    condition: str = "source"

    def __post_init__(self) -> None:
        within("inversion.steps", self.steps, 1, 1000)
        within("inversion.refine", self.refine, 0, 100)
        choice("inversion.gate", self.gate, ("warn", "strict", "off"))
        choice("inversion.condition", self.condition, ("source", "text", "empty"))


@dataclass(frozen=True, eq=False)
class Trajectory:
    """latents: `T+1 b f c h w`; the index is the level, so 0 is the clean latent that was inverted, bit for bit."""

    latents: Tensor

    def level(self, k: int) -> Tensor:
        """`b f c h w` at level ``k``."""
        return self.latents[k]


def inversion_condition(source: Condition, kind: str) -> Condition:
    """What the inversion is told of the source condition, by ``InversionOptions.condition``."""
    choice("inversion.condition", kind, ("source", "text", "empty"))
    if kind == "empty":
        return source.null
    return source if kind == "source" else dataclasses.replace(source, image=source.null_image)


@torch.no_grad()
def invert(
    denoiser: NoisePredictor,
    schedule: Schedule,
    latents: Tensor,
    condition: Condition,
    refine: int = 3,
    on_step: Callable[[int, int], None] | None = None,
) -> Trajectory:
    """Carry clean ``latents`` `b f c h w` up to noise, guidance 1, in their own dtype (METHOD 4).

    Each step looks for the noisier latent from which sampling would come back: a fixed point, found by asking the
    model at the upper timestep 1 + ``refine`` times, each time at the last answer. Output v is converted there, at the
    upper level too (the denoiser does it with the t it is given); at the lower one an error would stay for good.
    """
    if latents.ndim != 5:
        raise InversionError(f"latents of shape {tuple(latents.shape)}: give them as `b f c h w`")
    levels = [latents]
    for upper in range(1, schedule.steps + 1):
        lower, guess = levels[-1], levels[-1]
        for _ in range(1 + refine):
            noise = denoiser(guess, schedule.timesteps[upper], condition).noise
            guess = ddim_step(lower, noise, schedule.alphas[upper - 1], schedule.alphas[upper])
        levels.append(guess)
        if on_step is not None:
            on_step(upper, schedule.steps)
    return Trajectory(torch.stack(levels))


@torch.no_grad()
def reconstruct(
    denoiser: NoisePredictor,
    schedule: Schedule,
    trajectory: Trajectory,
    condition: Condition,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sample back from the trajectory's noisiest level, guidance 1, no corrections -> clean latents `b f c h w`."""
    _check_levels(schedule, trajectory)
    latents = trajectory.level(schedule.steps)
    for upper in range(schedule.steps, 0, -1):
        noise = denoiser(latents, schedule.timesteps[upper], condition).noise
        latents = ddim_step(latents, noise, schedule.alphas[upper], schedule.alphas[upper - 1])
        if on_step is not None:
            on_step(schedule.steps - upper + 1, schedule.steps)
    return latents


def check_reconstruction(psnr: float, floor: float, gate: str) -> bool:
    """Whether the reconstruction's ``psnr`` comes within 3 dB of the autoencoder round trip's ``floor`` (METHOD 4).

    If not, gate ``warn`` warns and ``strict`` raises :class:`InversionError`, both with the remedy; ``off`` is silent.
    """
    choice("inversion.gate", gate, ("warn", "strict", "off"))
    if psnr >= floor - GATE_DB:
        return True
    message = (
        f"the inverted clip comes back at {psnr:.1f} dB where the autoencoder reaches {floor:.1f} dB, so an edit will "
        "lose the source: tune for more steps, or raise inversion.steps or inversion.refine"
    )
    if gate == "strict":
        raise InversionError(message)
    if gate == "warn":
        warnings.warn(message, stacklevel=2)
    return False


def _check_levels(schedule: Schedule, trajectory: Trajectory) -> None:
    found = len(trajectory.latents) - 1
    if found != schedule.steps:
        raise InversionError(
            f"trajectory of {found} steps for a schedule of {schedule.steps}: use the one it was inverted with"
        )
