"""An edit against the ideal result, which is known for drawn clips alone.

An edit doesn't promise where in its region the new object stands, so the ``aligned`` metrics shift the ideal target.
SSIM penalises blur, PSNR a shade of colour. None of them drops much if a small object isn't painted at all, and a
classifier sees one of its classes in an empty road: :func:`object_presence` covers that.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from .regions import psnr, psnr_of_sum, require_same_shape, squared_error, ssim

PRESENT = 0.5  # share of the ideal frame's difference from the empty scene that counts as an object
ALL = slice(None)


@dataclass(frozen=True)
class IdealLayers:
    """The layers of the ideal clip, bottom to top. Colours in [-1, 1], straight alpha in [0, 1], float32."""

    background: Tensor  # f 3 H W, without vehicle and occluder
    target: Tensor  # f 4 H+2*my W+2*mx, with margins my = H // 16 and mx = W // 8 around the picture
    occluder: Tensor  # f 4 H W

    @property
    def reach(self) -> tuple[int, int]:
        """Largest shift (dx, dy) in pixels that the target layer's margins allow."""
        return self.background.shape[3] // 8, self.background.shape[2] // 16

    def render(self, dx: int = 0, dy: int = 0, rows: slice = ALL, columns: slice = ALL) -> tuple[Tensor, Tensor]:
        """The clip with its target moved ``dx`` pixels right and ``dy`` down, and the :meth:`visible` pixels."""
        target, occluder = self._moved(dx, dy)[:, :, rows, columns], self.occluder[:, :, rows, columns]
        frames = _over(occluder, _over(target, self.background[:, :, rows, columns]))
        return frames, self.visible(dx, dy, rows, columns)

    def visible(self, dx: int = 0, dy: int = 0, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        """The moved target's visible pixels: at least half covered by it."""
        return self._moved(dx, dy)[:, 3, rows, columns] * (1 - self.occluder[:, 3, rows, columns]) >= 0.5

    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the picture that the target can touch at some shift, over all frames."""
        (mx, my), (height, width) = self.reach, self.background.shape[2:]
        drawn = (self.target[:, 3] > 0).any(dim=0)
        # A picture's row y is the layer's row y + my, and a shift moves it by my at most: the two margins add up.
        return _span(drawn.any(dim=1), 2 * my, height), _span(drawn.any(dim=0), 2 * mx, width)

    def _moved(self, dx: int, dy: int) -> Tensor:
        (mx, my), (height, width) = self.reach, self.background.shape[2:]
        return self.target[:, :, my - dy : my - dy + height, mx - dx : mx - dx + width]


class Aligned(NamedTuple):
    """The shift of the ideal target with the highest PSNR, in pixels right and down, and that PSNR in dB."""

    psnr: float | None
    dx: int
    dy: int


def residue(edited: Tensor, source: Tensor, ideal: Tensor, source_mask: Tensor, target_mask: Tensor) -> float | None:
    """Share of source-minus-target pixels that are nearer in RGB to the source than to the ideal clip, in [0, 1].

    ``source`` and ``ideal`` are as drawn, before any video codec.
    """
    require_same_shape(edited=edited, source=source, ideal=ideal)
    given_up = source_mask & ~target_mask
    nearer = squared_error(edited, source) < squared_error(edited, ideal)
    total = int(given_up.sum())
    return int((nearer & given_up).sum()) / total if total else None


def object_presence(edited: Tensor, layers: IdealLayers) -> float | None:
    """Share of frames with any object about where the target should stand, in [0, 1]; the old object counts as well.

    A frame is empty if it differs from the scene without vehicles by less than half of what the ideal frame does: root
    of the squares summed over the target's pixels, moved for each frame to where the edit differs most. Frames whose
    ideal shows no target don't count.
    """
    require_same_shape(edited=edited, background=layers.background)
    empty, (ideal, target) = _over(layers.occluder, layers.background), layers.render()
    expected = (squared_error(ideal, empty) * target).sum(dim=(1, 2), dtype=torch.float64)
    (mx, my), (rows, columns) = layers.reach, layers.window()
    error, found = squared_error(edited, empty)[:, rows, columns], torch.zeros_like(expected)
    for dx, dy in product(range(-mx, mx + 1), range(-my, my + 1)):
        moved = error * layers.visible(dx, dy, rows, columns)
        found = torch.maximum(found, moved.sum(dim=(1, 2), dtype=torch.float64))
    counted = expected > 0
    return float((found >= PRESENT**2 * expected)[counted].double().mean()) if counted.any() else None


def ideal_psnr(edited: Tensor, ideal: Tensor, source_mask: Tensor, target_mask: Tensor) -> float | None:
    """PSNR against the ideal clip over source-or-target pixels, in dB."""
    return psnr(edited, ideal, source_mask | target_mask)


def align(edited: Tensor, ideal: Tensor, source_mask: Tensor, target_mask: Tensor, layers: IdealLayers) -> Aligned:
    """Best :func:`ideal_psnr` over integer shifts of the target, one for the clip: |dx| <= W // 8, |dy| <= H // 16.

    At a shift the ideal clip is rendered again and compared over source-or-moved-target pixels. At shift 0 ``ideal``
    itself is used, so the result is never below :func:`ideal_psnr`; of equally good shifts the smallest is chosen.
    """
    require_same_shape(edited=edited, background=layers.background)
    best = Aligned(ideal_psnr(edited, ideal, source_mask, target_mask), 0, 0)
    rows, columns = layers.window()
    # Most of the picture is the same at every shift: its error is summed once, the window's at each shift.
    error = squared_error(edited, _over(layers.occluder, layers.background))
    fixed = source_mask.clone()
    fixed[:, rows, columns] = False
    fixed_error, fixed_pixels = float(error[fixed].sum(dtype=torch.float64)), int(fixed.sum())
    edited, source_mask = edited[:, :, rows, columns], source_mask[:, rows, columns]
    mx, my = layers.reach
    shifts = product(range(-mx, mx + 1), range(-my, my + 1))
    for dx, dy in sorted(shifts, key=lambda shift: abs(shift[0]) + abs(shift[1]))[1:]:
        moved, visible = layers.render(dx, dy, rows, columns)
        region = source_mask | visible
        window_error = float((squared_error(edited, moved) * region).sum(dtype=torch.float64))
        score = psnr_of_sum(fixed_error + window_error, fixed_pixels + int(region.sum()))
        if score is not None and (best.psnr is None or score > best.psnr):
            best = Aligned(score, dx, dy)
    return best


def ideal_ssim(edited: Tensor, ideal: Tensor, source_mask: Tensor, target_mask: Tensor) -> float | None:
    """SSIM against the ideal clip, mean over source-or-target pixels (windows may reach beyond them), at most 1."""
    return ssim(edited, ideal, source_mask | target_mask)


def ideal_ssim_aligned(
    edited: Tensor, ideal: Tensor, source: Tensor, target: Tensor, layers: IdealLayers, at: Aligned | None = None
) -> float | None:
    """:func:`ideal_ssim` at the shift that :func:`align` finds, or that is given."""
    at = at or align(edited, ideal, source, target, layers)
    if at.dx or at.dy:
        ideal, target = layers.render(at.dx, at.dy)
    return ideal_ssim(edited, ideal, source, target)


def _over(layer: Tensor, below: Tensor) -> Tensor:
    """Straight-alpha ``f 4 H W`` over opaque ``f 3 H W``."""
    return torch.lerp(below, layer[:, :3], layer[:, 3:])


def _span(drawn: Tensor, margin: int, size: int) -> slice:
    """Picture positions that a layer's ``drawn`` positions (bool, ``size + margin`` of them) reach by any shift."""
    found = torch.nonzero(drawn)
    return slice(max(0, int(found[0]) - margin), min(size, int(found[-1]) + 1)) if len(found) else slice(0, 0)
