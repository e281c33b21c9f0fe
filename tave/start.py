"""Where sampling starts: the inverted latents, or inside the mask noise or the target in its place (METHOD 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from tave.schedule import add_noise


def path_of(binary: Tensor) -> list[tuple[int, int]]:
    """Shift (down, right) in cells of each frame's region against the first one's.

    ``binary`` `f h w` in {0, 1}. The region's centre of mass, rounded; a frame without one is where the last one was.
    """
    centres: list[Tensor | None] = []
    for region in binary.cpu() > 0:
        centres.append(torch.nonzero(region).float().mean(0) if region.any() else (centres[-1] if centres else None))
    origin = next((centre for centre in centres if centre is not None), torch.zeros(2))
    shifts = [(origin if centre is None else centre) - origin for centre in centres]
    return [(round(float(down)), round(float(right))) for down, right in shifts]


def riding_noise(shape: torch.Size, path: list[tuple[int, int]], generator: torch.Generator) -> Tensor:
    """Gaussian noise ``shape`` `1 f c h w`: one large field, of which each frame sees the window that its object rides on.

    Each frame is white noise of unit variance, and what stands on the object is the same in all frames.
    """
    _, _, channels, height, width = shape
    top = max(y for y, _ in path)
    left = max(x for _, x in path)
    tall, wide = height + top - min(y for y, _ in path), width + left - min(x for _, x in path)
    field = torch.randn(channels, tall, wide, generator=generator)
    return torch.stack([field[:, top - y : top - y + height, left - x : left - x + width] for y, x in path])[None]


def fresh_start(start: Tensor, mask: Tensor, found: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """``start`` `1 f c h w` with a share of riding noise inside ``mask``; outside every bit is kept.

    An inverted latent still holds the old object's shape and colours: what is to look otherwise, and to have another size,
    is better painted from noise that doesn't. The same noise in the same place of the object, frame after frame, is
    what keeps it from flickering. ``sqrt(1 - share) start + sqrt(share) noise`` has the start's variance.

    Args:
        mask: `1 f 1 h w`, 1 = edit; found: the same before dilation, whose motion the noise follows.
        share: 0 (the method's own start) to 1.
    """
    if not share:
        return start
    noise = riding_noise(start.shape, path_of(found[0, :, 0]), generator).to(start)
    return torch.where(mask > 0, (1 - share) ** 0.5 * start + share**0.5 * noise, start)


def placed_start(
    placed: Tensor, kept: Tensor, mask: Tensor, path: list[tuple[int, int]], alpha: Tensor, generator: torch.Generator
) -> Tensor:
    """The target in its place, noised, inside ``mask``; outside every bit of the source's latents of that level is kept.

    An edit that begins at pure noise has to invent where the target stands, how large it is, and once a frame whether it is
    there at all. Begun from a noised picture of it in its place (SDEdit, Meng et al. 2021), it only has to paint it as it would
    look there. The noise rides with the object, as in :func:`fresh_start`.

    Args:
        placed: clean latents of the target in its place, `1 f c h w`; kept: the inversion's of the level, alike.
        mask: `1 f 1 h w`, 1 = edit; path: of the object, shift (down, right) in cells for each frame. alpha: the level's
            alphas_cumprod, 0-dim.
    """
    noise = riding_noise(placed.shape, path, generator).to(placed)
    return torch.where(mask > 0, add_noise(placed, noise, alpha), kept)
