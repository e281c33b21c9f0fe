"""DDIM inversion: a clip's latents -> its whole trajectory up to noise, and back (docs/method.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tave.config import choice
from tave.denoiser import NoisePredictor
from tave.encoders import Condition
from tave.finite import Watch
from tave.schedule import Schedule, ddim_step

GATE_DB = 3.0  # docs/method.md, section 4: further below the autoencoder's round trip an edit loses the source


class InversionError(ValueError):
    """Latents and levels that don't fit, or a reconstruction that a strict gate refuses."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """latents: `T+1 b f c h w`; the index is the level, so 0 is the clean latent that was inverted, bit for bit."""

    latents: Tensor

    def level(self, k: int) -> Tensor:
        """`b f c h w` at level ``k``."""
        return self.latents[k]


def inversion_condition(source: Condition, kind: str) -> Condition:
    """The condition of the inversion: the source condition, its text alone (``text``) or the null condition
    (``empty``).
    """
    choice("inversion.condition", kind, ("source", "text", "empty"))
    if kind == "empty":
        return source.null
    return source if kind == "source" else replace(source, image=source.null_image)


@torch.no_grad()
def invert(
    denoiser: NoisePredictor,
    schedule: Schedule,
    latents: Tensor,
    condition: Condition,
    refine: int = 3,
    on_step: Callable[[int, int], None] | None = None,
) -> Trajectory:
    """Invert clean ``latents`` `b f c h w` up to noise with guidance 1, in their own dtype.

    Each step looks for the noisier latent from which a sampling step returns: a fixed point, approached by evaluating
    the model at the upper timestep 1 + ``refine`` times, each time at the last estimate. A v output is converted with
    the upper level's alpha; with the lower one an error remains that no refinement removes. Raises
    :class:`InversionError` for latents of another shape, :class:`NonFiniteError` for NaN and infinity.
    """
    if latents.ndim != 5:
        raise InversionError(f"latents of shape {tuple(latents.shape)}: give them as `b f c h w`")
    levels, watch = [latents], Watch("inversion")
    for upper in range(1, schedule.steps + 1):
        lower, guess = levels[-1], levels[-1]
        for _ in range(1 + refine):
            noise = denoiser(guess, schedule.timesteps[upper], condition).noise
            guess = ddim_step(lower, noise, schedule.alphas[upper - 1], schedule.alphas[upper])
        levels.append(guess)
        watch.add(upper, "latent", guess)
        if on_step is not None:
            on_step(upper, schedule.steps)
    watch.read()
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
    latents, watch = trajectory.level(schedule.steps), Watch("reconstruction")
    for upper in range(schedule.steps, 0, -1):
        noise = denoiser(latents, schedule.timesteps[upper], condition).noise
        latents = ddim_step(latents, noise, schedule.alphas[upper], schedule.alphas[upper - 1])
        watch.add(schedule.steps - upper + 1, "latent", latents)
        if on_step is not None:
            on_step(schedule.steps - upper + 1, schedule.steps)
    watch.read()
    return latents


def reconstruction_note(psnr: float, floor: float, gate: str) -> str:
    """Return a warning if the reconstruction's ``psnr`` is over 3 dB below the autoencoder's own (``floor``), else "".

    Gate ``strict`` raises :class:`InversionError` instead; ``off`` never warns.
    """
    choice("inversion.gate", gate, ("warn", "strict", "off"))
    if psnr >= floor - GATE_DB or gate == "off":
        return ""
    message = (
        f"the inverted clip is reconstructed at {psnr:.1f} dB where the autoencoder reaches {floor:.1f} dB, so an edit "
        "may lose the source: raise tuning.steps, inversion.steps or inversion.refine"
    )
    if gate == "strict":
        raise InversionError(message)
    return message


def _check_levels(schedule: Schedule, trajectory: Trajectory) -> None:
    found = len(trajectory.latents) - 1
    if found != schedule.steps:
        raise InversionError(
            f"trajectory of {found} steps for a schedule of {schedule.steps}: use the one it was inverted with"
        )
