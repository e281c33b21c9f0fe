"""What of a photograph is the target object: its colours, where the network recognises it (METHOD 1)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tave.conditions import Condition
from tave.denoiser import NoisePredictor, untold_and_told
from tave.masking import prominent
from tave.outline import outline
from tave.reference.regions import largest, without_holes, without_thin
from tave.schedule import add_noise

SHARES = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55)  # of the training's timesteps: noise that leaves things where they are
_LESS = 0.75  # of Otsu's threshold: an object's parts that the network is less sure of are its parts as well
_LEAST = 0.5  # share of what the colours found below which the network recognised something else
_PART = 0.06  # share of what the colours found: a part of the object that isn't its colour is smaller
_MOST = 0.8  # share of an object that isn't thin
_THIN = 0.02  # of the picture's height: half as wide as a palm's trunk


@torch.no_grad()
def recognised(
    denoiser: NoisePredictor, alphas_cumprod: Tensor, latents: Tensor, told: Condition, generator: torch.Generator
) -> Tensor:
    """The cells of a picture in which its condition has a say, `h w` bool: the largest piece.

    What two predictions disagree about tells where an edit goes (METHOD 5); told the target or nothing, it tells where the
    target is.

    Args:
        latents: of the picture, as a still clip, `1 f c h w`. told: prompt and picture.
    """
    say = torch.zeros(latents.shape[-2:], device=latents.device)
    for share in SHARES:
        t = round(share * (len(alphas_cumprod) - 1))
        noisy = add_noise(latents, torch.randn(latents.shape, generator=generator).to(latents), alphas_cumprod[t])
        null, by_told = untold_and_told(denoiser, noisy, t, told)
        apart = (by_told - null).abs().mean((0, 1, 2)).to(say)
        say += apart / apart.mean().clamp(min=1e-8)
    return torch.from_numpy(largest(prominent(say, torch.ones_like(say) > 0, _LESS).cpu().numpy()))


def narrowed(matte: Tensor, picture: Tensor, cells: Tensor) -> Tensor:
    """``matte`` `1 h w` without what only its colours took for the object: a house behind it, a palm that grows from its roof.

    Kept is what lies within the outline that the colours of ``picture`` `1 3 H W` draw around ``cells`` `h' w'` bool, and its
    small parts in these cells, where it isn't thin. All of it is kept if that is less than half: the network may know less of
    the object than its colours do.
    """
    drawn = outline(picture, cells[None].float())
    if drawn is None:
        return matte
    found = (matte > 0.5)[0].numpy()
    size = matte.shape[-2:]
    kept = largest(found & (interpolate(drawn, size, mode="nearest-exact")[0, 0].numpy() > 0.5))
    inside = interpolate(cells[None, None].float(), size, mode="nearest-exact")[0, 0].numpy() > 0
    count, pieces, stats, _ = cv2.connectedComponentsWithStats((found & ~kept).astype(np.uint8), connectivity=4)
    for piece in range(1, count):  # a wheel is of another colour than the rest, and small; a house isn't
        lost = pieces == piece
        if stats[piece, cv2.CC_STAT_AREA] < _PART * found.sum() and (lost & inside).sum() > 0.5 * lost.sum():
            kept = kept | lost
    kept = largest(kept)
    thick = largest(without_thin(kept, max(1, round(_THIN * len(kept)))))
    if thick.sum() > _MOST * kept.sum():  # else all of it is thin, as a bicycle is
        kept = thick
    kept = without_holes(kept)
    return matte * torch.from_numpy(kept).to(matte) if kept.sum() > _LEAST * found.sum() else matte
