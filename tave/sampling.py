"""Where sampling starts, the denoising loop, and the composite of its frames (docs/method.md, section 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from tave.correction import Correction, Level, Step, tap_of
from tave.denoiser import NoisePredictor
from tave.encoders import Condition
from tave.finite import REMEDY, Watch
from tave.schedule import Schedule, ddim_step

# ---- start -----------------------------------------------------------------------------------------------------------


def object_path(binary: Tensor) -> list[tuple[int, int]]:
    """Shift (down, right) in cells of each frame's region against the first one's.

    ``binary`` `f h w` in {0, 1}. The region's centre of mass, rounded; a frame without a region keeps the last
    position.
    """
    centres: list[Tensor | None] = []
    for region in binary.cpu() > 0:
        centres.append(torch.nonzero(region).float().mean(0) if region.any() else (centres[-1] if centres else None))
    origin = next((centre for centre in centres if centre is not None), torch.zeros(2))
    shifts = [(origin if centre is None else centre) - origin for centre in centres]
    return [(round(float(down)), round(float(right))) for down, right in shifts]


def motion_aligned_noise(shape: torch.Size, path: list[tuple[int, int]], generator: torch.Generator) -> Tensor:
    """Gaussian noise ``shape`` `1 f c h w`: windows of one large field that move along ``path``.

    Each frame is white noise of unit variance, and at a fixed place of the moving object it is the same in all frames.
    """
    _, _, channels, height, width = shape
    top = max(y for y, _ in path)
    left = max(x for _, x in path)
    tall, wide = height + top - min(y for y, _ in path), width + left - min(x for _, x in path)
    field = torch.randn(channels, tall, wide, generator=generator)
    return torch.stack([field[:, top - y : top - y + height, left - x : left - x + width] for y, x in path])[None]


def start_latents(noisiest: Tensor, mask: Tensor, found: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The inverted latents ``noisiest`` `1 f c h w`, with a share of fresh noise inside ``mask``; every bit kept
    outside.

    Inverted latents still contain the old object's shape and colours. Noise that moves with the object does not, and
    being the same at the same place of the object in all frames it does not make it flicker.
    ``sqrt(1 - share) z_T + sqrt(share) noise`` has the variance of ``z_T``.

    Args:
        mask: `1 f 1 h w`, 1 = edit; found: the same before dilation, whose motion the noise follows.
        share: 0 (inverted latents alone) to 1 (noise alone).
    """
    if not share:
        return noisiest
    noise = motion_aligned_noise(noisiest.shape, object_path(found[0, :, 0]), generator).to(noisiest)
    return torch.where(mask > 0, (1 - share) ** 0.5 * noisiest + share**0.5 * noise, noisiest)


# ---- loop ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(
    denoiser: NoisePredictor,
    schedule: Schedule,
    start: Tensor,
    condition: Condition,
    *,
    guidance_scale: float = 1.0,
    corrections: Sequence[Correction] = (),
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """From ``start`` `b f c h w` at the noisiest level to clean latents, one DDIM step per level.

    After each step the corrections are applied in the order given, each to the previous one's result. Raises
    :class:`NonFiniteError` for NaN and infinity.
    """
    latents, total = start, schedule.steps
    watch = Watch("sampling", f"lower sampler.guidance_scale (now {guidance_scale:g}), or {REMEDY}")
    for index in reversed(range(total)):
        level = Level(index, total, schedule.alphas[index + 1], schedule.alphas[index])
        tap = tap_of(corrections, index, total)
        noise, features = denoiser(latents, schedule.timesteps[index + 1], condition, guidance_scale, tap)
        step = Step(level, latents, noise, ddim_step(latents, noise, level.alpha_from, level.alpha_to), features)
        for correction in corrections:
            step = replace(step, latents=correction(step))
        latents = step.latents
        watch.add(total - index, "latent", latents)
        if on_step is not None:
            on_step(total - index, total)
    watch.read()
    return latents


# ---- composite -------------------------------------------------------------------------------------------------------


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Mask `1 f 1 h w` on the latent grid -> `f 1 H W` on the pixels, nearest cell, values unchanged."""
    if mask.dim() != 5 or mask.shape[0] != 1:
        raise ValueError(f"mask has shape {tuple(mask.shape)}: resize the mask of one clip, `1 f 1 h w`")
    return interpolate(mask[0], (height, width), mode="nearest-exact")


def composite_alpha(mask: Tensor, feather: float) -> Tensor:
    """Binary mask `f 1 H W` -> opacity of the edit in [0, 1], same shape.

    Exactly 1 on the whole mask, ``1 - d / (k + 1)`` at ``d`` pixels outside it (a diagonal counts one), exactly 0
    beyond k pixels, k being the share ``feather`` of the shorter side: the seam lies outside the edited object, never
    on it.
    """
    reach = round(feather * min(mask.shape[-2:]))
    grown = mask
    total = mask.clone()
    for _ in range(reach):
        grown = max_pool2d(grown, 3, 1, 1)
        total += grown
    return total / (reach + 1)


def composite(edited: Tensor, source: Tensor, alpha: Tensor) -> Tensor:
    """``alpha`` `f 1 H W` of ``edited`` over ``source``, frames `f 3 H W`; exact where alpha is 1 or 0."""
    if edited.shape != source.shape:
        raise ValueError(f"edited {tuple(edited.shape)}, source {tuple(source.shape)}: bring them to one size")
    return torch.lerp(source, edited, alpha.expand_as(source))
