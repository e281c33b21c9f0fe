"""How tall the target stands in the source object's place, and facing where: what its condition explains best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tave.conditions import Condition, stack
from tave.denoiser import NoisePredictor
from tave.reference import Placed, Pose
from tave.schedule import add_noise

HEIGHTS = tuple(2 ** (quarter / 4) for quarter in range(-4, 5))  # half to twice the source object's, in quarter octaves
COARSE = HEIGHTS[2:7]  # at which the heading is decided
SHARES = (0.65, 0.75, 0.85)  # of the training's timesteps: noise that leaves the size of things, and not their detail


@torch.no_grad()
def gain(denoiser: NoisePredictor, alphas_cumprod: Tensor, latents: Tensor, told: Condition, noises: Sequence[Tensor]) -> float:
    """How much better ``told`` explains ``latents`` `1 f c h w` than nothing does; negative where it does worse.

    ``sum_t |eps - eps(z_t; null)|^2 - |eps - eps(z_t; told)|^2``, with ``z_t`` made of ``latents`` and one noise `1 f c h w`
    for each of :data:`SHARES`: up to the steps' weights and a constant the logarithm of p(told | latents), as diffusion
    classifiers have it (Li et al. 2023, arXiv 2303.16203).
    """
    branches, total = stack(told.null, told), 0.0
    for share, noise in zip(SHARES, noises, strict=True):
        t = round(share * (len(alphas_cumprod) - 1))
        noisy = add_noise(latents, noise, alphas_cumprod[t])
        null, by_told = (
            (denoiser(torch.cat([noisy] * 2), t, branches).noise - noise).double().square().sum((1, 2, 3, 4)).tolist()
        )
        total += null - by_told
    return total


def find_pose(
    place: Callable[[Pose], Placed],
    explained: Callable[[Tensor], float],
    bare: Tensor,
    *,
    height: float | None,
    heading: str,
    on_step: Callable[[int, int], None] | None = None,
) -> Pose:
    """The pose in which the target's condition explains the target's clip best; what is given isn't asked.

    The source object tells where the scene's ground is and how near; how much taller or lower another object is there, is
    knowledge of the world, which the network has. **Heading**: the larger sum of :func:`gain` over five heights. **Height**:
    the gain over that of the place without a target, by the square root of the pixels that the target covers: what n pixels
    gain adds up as n, what they gain by chance as sqrt(n); without that more of it would always be better. Where no height
    gains anything it is 1.

    Args:
        place: pose -> the target in its place; explained: clip `f 3 H W` -> the condition's gain; bare: without a target.
        height, heading: ``reference.height_scale`` and ``reference.heading``.
    """
    headings = {"as_is": (False,), "mirrored": (True,), "auto": (False, True)}[heading]
    heights, coarse = (HEIGHTS, COARSE) if height is None else ((height,), (height,))
    total = 1 + len(coarse) * len(headings) + len(heights) - len(coarse)
    seen: dict[Pose, tuple[float, float]] = {}  # the gain over nothing, and the pixels that the target covers

    def tick() -> None:
        if on_step is not None:
            on_step(1 + len(seen), total)

    nothing = explained(bare)
    tick()

    def look(pose: Pose) -> tuple[float, float]:
        if pose not in seen:
            placed = place(pose)
            seen[pose] = explained(placed.pictures) - nothing, max(1.0, float(placed.alpha.sum()))
            tick()
        return seen[pose]

    mirrored = headings[0]
    if len(headings) > 1:
        mirrored = max(headings, key=lambda turned: sum(look(Pose(tall, turned))[0] for tall in coarse))

    def sureness(pose: Pose) -> float:
        more, area = look(pose)
        return more / area**0.5

    best = max((Pose(tall, mirrored) for tall in heights), key=sureness)
    return best if height is not None or look(best)[0] > 0 else Pose(1.0, mirrored)
