"""What of a photograph is the target object: its colours, where the network recognises it (METHOD 1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tave.conditions import Condition, stack
from tave.denoiser import NoisePredictor
from tave.masking import otsu
from tave.outline import outline
from tave.reference.cutout import largest, without_holes
from tave.schedule import add_noise

SHARES = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55)  # of the training's timesteps: noise that leaves things where they are
_LEAST = 0.3  # share of what the colours found below which the network recognised something else


@torch.no_grad()
def recognised(
    denoiser: NoisePredictor, alphas_cumprod: Tensor, latents: Tensor, told: Condition, generator: torch.Generator
) -> Tensor:
    """The cells of a picture in which its condition has a say, `h w` bool: the largest piece above Otsu's threshold.

    What two predictions disagree about tells where an edit goes (METHOD 5); told the target or nothing, it tells where the
    target is.

    Args:
        latents: of the picture, as a still clip, `1 f c h w`. told: prompt and picture.
    """
    branches, say = stack(told.null, told), torch.zeros(latents.shape[-2:], device=latents.device)
    for share in SHARES:
        t = round(share * (len(alphas_cumprod) - 1))
        noisy = add_noise(latents, torch.randn(latents.shape, generator=generator).to(latents), alphas_cumprod[t])
        null, by_told = denoiser(torch.cat([noisy] * 2), t, branches).noise.chunk(2)
        apart = (by_told - null).abs().mean((0, 1, 2)).to(say)
        say += apart / apart.mean().clamp(min=1e-8)
    return torch.from_numpy(largest((say > otsu(say / say.max()) * say.max()).cpu().numpy()))


def narrowed(matte: Tensor, picture: Tensor, cells: Tensor) -> Tensor:
    """``matte`` `1 h w` without what only its colours took for the object: a house behind it, a palm that grows from its roof.

    Kept is what lies in ``cells`` `h' w'` bool, or within the outline that the colours of ``picture`` `1 3 H W` draw around
    them. All of it is kept if that is next to nothing: the network may know less of the object than its colours do.
    """
    size = matte.shape[-2:]
    near = interpolate(cells[None, None].float(), size, mode="nearest-exact")[0]
    drawn = outline(picture, cells[None].float())
    if drawn is not None:
        near = torch.maximum(near, interpolate(drawn, size, mode="nearest-exact")[0].to(near))
    kept = np.asarray(without_holes(largest(((matte > 0.5) & (near > 0.5))[0].numpy())))
    if kept.sum() < _LEAST * float((matte > 0.5).sum()):
        return matte
    return matte * torch.from_numpy(kept).to(matte)
