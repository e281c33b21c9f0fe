"""The denoising loop, from start and condition to latents; and the composite of its frames (METHOD 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from tave.conditions import Condition
from tave.correction import Correction, Step, tap_of
from tave.denoiser import NoisePredictor
from tave.options import OptionError, choice, within
from tave.schedule import Schedule, ddim_step


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling. ``feather`` is in pixels.

    ``image_guidance_scale``: the picture's own, beside ``guidance_scale`` for the words; None: one scale for both.
    """

    guidance_scale: float = 7.5
    image_guidance_scale: float | None = None
    start: str = "inverted"  # inverted: the source's z_T | placed: the target, put in its place and noised
    strength: float = 0.8  # of start=placed: the share of the steps that are left to do, 1 from pure noise
    fresh_noise: float = 0.0  # of start=inverted: share inside the mask, 0 as inverted, 1 noise that rides with the object
    background: str = "latents"  # latents: the inversion's, at each step | none
    composite: bool = True  # the source's own pixels outside the mask
    feather: int = 4

    def __post_init__(self) -> None:
        choice("sampler.start", self.start, ("inverted", "placed"))
        if not 0 < self.strength <= 1:
            raise OptionError(f"sampler.strength={self.strength} is out of range: set it above 0 and at most 1")
        choice("sampler.background", self.background, ("none", "latents"))
        within("sampler.guidance_scale", self.guidance_scale, 0, 100)
        if self.image_guidance_scale is not None:
            within("sampler.image_guidance_scale", self.image_guidance_scale, 0, 100)
        within("sampler.feather", self.feather, 0, 256)
        within("sampler.fresh_noise", self.fresh_noise, 0, 1)


@torch.no_grad()
def sample(
    denoiser: NoisePredictor,
    schedule: Schedule,
    start: Tensor,
    condition: Condition,
    *,
    guidance_scale: float = 1.0,
    corrections: Sequence[Correction] = (),
    first: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """From ``start`` `b f c h w` at level ``first`` (None: the noisiest) to clean latents, one DDIM step per level (METHOD 6).

    After each step the corrections are applied in the order given, each to what the one before it left.
    """
    latents, total = start, schedule.steps
    first = total if first is None else first
    for level in reversed(range(first)):
        t, alpha_from, alpha_to = (
            schedule.timesteps[level + 1],
            schedule.alphas[level + 1],
            schedule.alphas[level],
        )
        noise, features = denoiser(latents, t, condition, guidance_scale, tap_of(corrections, level, total))
        moved = ddim_step(latents, noise, alpha_from, alpha_to)
        step = Step(level, total, t, latents, noise, moved, features, alpha_from, alpha_to)
        for correction in corrections:
            step = replace(step, latents=correction(step))
        latents = step.latents
        if on_step is not None:
            on_step(first - level, first)
    return latents


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Mask `1 f 1 h w` on the latent grid -> `f 1 H W` on the pixels, nearest cell, values unchanged."""
    if mask.dim() != 5 or mask.shape[0] != 1:
        raise ValueError(f"mask has shape {tuple(mask.shape)}: resize the mask of one clip, `1 f 1 h w`")
    return interpolate(mask[0], (height, width), mode="nearest-exact")


def composite_alpha(mask: Tensor, feather: int) -> Tensor:
    """Binary mask `f 1 H W` -> opacity of the edit in [0, 1], same shape (METHOD 6).

    Exactly 1 on the whole mask, ``1 - d / (feather + 1)`` at ``d`` pixels outside it (a diagonal counts one),
    exactly 0 beyond ``feather``: the seam lies outside the edited object, never on it.
    """
    grown = mask
    total = mask.clone()
    for _ in range(feather):
        grown = max_pool2d(grown, 3, 1, 1)
        total += grown
    return total / (feather + 1)


def composite(edited: Tensor, source: Tensor, alpha: Tensor) -> Tensor:
    """``alpha`` `f 1 H W` of ``edited`` over ``source``, frames `f 3 H W`; exact where alpha is 1 or 0."""
    if edited.shape != source.shape:
        raise ValueError(f"edited {tuple(edited.shape)}, source {tuple(source.shape)}: fit them to one size")
    return torch.lerp(source, edited, alpha.expand_as(source))
