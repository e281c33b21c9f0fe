"""How tall the target stands in the source object's place, and facing where: what the network paints there, and expects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from tave.conditions import Condition
from tave.correction import Background
from tave.denoiser import NoisePredictor, Prediction, Tap, untold_and_told
from tave.inversion import Trajectory
from tave.masking import prominent
from tave.outline import outline
from tave.reference import Placed, Pose, Stance
from tave.reference.regions import box_of, largest, no_specks
from tave.sampling import sample
from tave.schedule import Schedule, add_noise

CLIPS, STEPS = 3, 12  # how often it paints, and in how many steps: sketches
SHARES = (0.4, 0.43, 0.46, 0.49, 0.52, 0.55, 0.58, 0.61)  # of the training's timesteps: noise that leaves where a front is
_ABOVE, _BELOW, _BESIDE = 3.2, 0.25, 4.5  # how far a target may reach, in the source object's heights
_NOISIEST = 0.2  # share of the steps in which it isn't decided yet where the object will be
_SILHOUETTE = 48, 24  # wide and tall
_SYMMETRIC = 0.95  # like its mirror image to this much, a silhouette tells no heading
_WIDE = 0.1  # of an object's widest row: a row that is narrower is an aerial, or a slip of the outline


def room(stance: Stance, size: Sequence[int], cells: Sequence[int]) -> Tensor:
    """Where a target of any likely size could be, in frames of ``size`` (H, W): `1 f 1 h w` in {0, 1} on ``cells`` (h, w)."""
    rows, columns = ((np.arange(n) + 0.5) * side / n for n, side in zip(cells, size, strict=True))
    bottom, middle, height = (part[:, None] for part in stance)
    tall = (rows > bottom - _ABOVE * height) & (rows < bottom + _BELOW * height)
    wide = np.abs(columns - middle) < _BESIDE * height
    return torch.from_numpy((tall[:, :, None] & wide[:, None, :]).astype(np.float32))[None, :, None]


class _Watched:
    """A predictor that keeps where the condition has a say: `f h w` of each call, |told - not told| over its own mean."""

    def __init__(self, denoiser: NoisePredictor) -> None:
        self.denoiser, self.maps = denoiser, list[Tensor]()

    def __call__(
        self, latents: Tensor, t: int, condition: Condition, guidance_scale: float = 1.0, tap: Tap | None = None
    ) -> Prediction:
        null, told = untold_and_told(self.denoiser, latents, t, condition)
        say = (told - null).abs().mean(2)[0]
        self.maps.append(say / say.mean().clamp(min=1e-8))
        return Prediction(null + guidance_scale * (told - null))


def painted(
    denoiser: NoisePredictor,
    schedule: Schedule,
    bare: Tensor,
    where: Tensor,
    words: Condition,
    generator: torch.Generator,
    *,
    guidance_scale: float,
    on_step: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """What the words make of noise ``where`` `1 f 1 h w` the ``bare`` clip `1 f c h w` is left to them; each frame by itself.

    Returns:
        Latents `1 f c h w`, and where the words had a say, `f h w` >= 0: that is where the object is.
    """
    around, begun = (torch.randn(bare.shape, generator=generator).to(bare) for _ in range(2))
    kept = Trajectory(torch.stack([bare, *(add_noise(bare, around, alpha) for alpha in schedule.alphas[1:])]))
    start = torch.where(where > 0, begun, kept.level(schedule.steps))
    watched = _Watched(denoiser)
    background = [Background(where, kept)]
    latents = sample(watched, schedule, start, words, guidance_scale=guidance_scale, corrections=background, on_step=on_step)
    return latents, torch.stack(watched.maps[math.floor(_NOISIEST * schedule.steps) :]).mean(0)


class Seen(NamedTuple):
    """An object that was painted: area in pixels, height over the source object's, and silhouette `h w` of one size for all."""

    area: float
    height: float
    silhouette: np.ndarray


def seen_in(clip: Tensor, say: Tensor, where: Tensor, stance: Stance) -> list[Seen]:
    """The objects in the frames of ``clip`` `f 3 H W` that show one whole.

    Args:
        say: where the words had a say, `f h w`, as :func:`painted` tells. where: :func:`room`, `1 f 1 h w`.
    """
    say, inside = say.cpu(), where[0, :, 0].cpu() > 0
    pieces = [largest(plane) for plane in prominent(say, inside).numpy()]
    outlines = outline(clip, torch.from_numpy(np.stack(pieces)).float())
    if outlines is None:
        return []
    found = []
    for plane, free, height in zip(outlines[:, 0].cpu().numpy() > 0.5, inside.any(1).numpy(), stance.heights, strict=True):
        if not plane.any():
            continue
        piece = largest(plane)
        columns, rows = np.nonzero(piece.any(0))[0], piece.sum(1)
        cell, ends = plane.shape[1] / len(free), np.nonzero(free)[0]
        if columns[0] > cell * ends[0] and columns[-1] + 1 < cell * (ends[-1] + 1):  # else its room's end cuts it off
            wide = np.nonzero(rows >= _WIDE * rows.max())[0]
            found.append(Seen(float(piece.sum()), (wide[-1] + 1 - wide[0]) / height, silhouette_of(piece)))
    return found


def silhouette_of(cut: np.ndarray) -> np.ndarray:
    """What of a picture `H W` is an object, in [0, 1], its box stretched to one size for all: `h w`."""
    box = box_of(cut > 0.5)
    inner = cut[box.top : box.bottom, box.left : box.right].astype(np.float32)
    return cv2.resize(inner, _SILHOUETTE, interpolation=cv2.INTER_AREA)


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    """Share of two silhouettes' common area in all that they cover."""
    return float(np.minimum(one, other).sum() / np.maximum(one, other).sum())


def typical_height(objects: Sequence[Seen]) -> float:
    """How many times as tall as the source object the target is, by what was painted: the median; 1 where that is nothing.

    The source object tells where the scene's ground is and how near; how much taller or lower another object is there, is
    knowledge of the world, which the network has. Its words alone are asked: the photograph would say how large the
    object is on the photograph.
    """
    if not objects:
        return 1.0
    areas, heights = np.array([seen[:2] for seen in objects]).T
    return float(np.exp2(np.median(np.log2(heights[no_specks(areas)]))))


def looks_away(silhouette: np.ndarray, objects: Sequence[Seen]) -> bool | None:
    """Whether a target of this ``silhouette`` `h w` looks the other way than ``objects``, which look as the words say.

    None where the shape doesn't tell: nothing was painted, or the silhouette is its own mirror image, as a bus's.
    """
    turned = silhouette[:, ::-1]
    if not objects or _alike(silhouette, turned) > _SYMMETRIC:
        return None
    return sum(_alike(turned, seen.silhouette) - _alike(silhouette, seen.silhouette) for seen in objects) > 0


@torch.no_grad()
def gain(denoiser: NoisePredictor, alphas_cumprod: Tensor, latents: Tensor, told: Condition, noises: Sequence[Tensor]) -> float:
    """How much better ``told`` explains ``latents`` `1 f c h w` than nothing does; negative where it does worse.

    ``sum_t |eps - eps(z_t; null)|^2 - |eps - eps(z_t; told)|^2``, with ``z_t`` made of ``latents`` and one noise `1 f c h w`
    for each of :data:`SHARES`: up to the steps' weights and a constant the logarithm of p(told | latents), as diffusion
    classifiers have it (Li et al. 2023, arXiv 2303.16203).
    """
    total = 0.0
    for share, noise in zip(SHARES, noises, strict=True):
        t = round(share * (len(alphas_cumprod) - 1))
        predicted = untold_and_told(denoiser, add_noise(latents, noise, alphas_cumprod[t]), t, told)
        null, by_told = (float((each - noise).double().square().sum()) for each in predicted)
        total += null - by_told
    return total


def explained_turned(place: Callable[[Pose], Placed], explained: Callable[[Tensor], float], height: float) -> bool:
    """Whether the condition explains the target in its place better if it looks the other way than its photograph.

    Args:
        place: pose -> the target in its place. explained: clip `f 3 H W` -> the condition's :func:`gain`.
    """
    as_is, turned = (explained(place(Pose(height, mirrored)).pictures) for mirrored in (False, True))
    return turned > as_is
