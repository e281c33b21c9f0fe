"""The edit against the known right answer, which only a drawn clip has.

:func:`ideal_psnr` asks for the ideal clip in place. :func:`ideal_psnr_aligned` lets the clip's object stand a little
elsewhere: an edit doesn't promise where in its region the new object stands. ``ideal_ssim`` and ``ideal_ssim_aligned`` ask the
same of structures, which blur loses and a shade of colour doesn't. None is lowered much where a small object
isn't painted at all, and a judge takes a bare road for one of its classes: so :func:`object_presence` asks for that alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .metric import ClipMetric, MetricError
from .preservation import psnr, psnr_of_sum, require_same_shape, squared_error, ssim

PRESENT = 0.5  # of the ideal frame's difference from the empty scene: from there on something stands in it


@dataclass(frozen=True)
class IdealLayers:
    """What the ideal clip is stacked from, bottom to top. Colours in [-1, 1], straight alpha in [0, 1], float32."""

    background: Tensor  # f 3 H W, neither vehicle nor occluder
    target: Tensor  # f 4 H+2*my W+2*mx, margins my = H // 16 and mx = W // 8 around the picture
    occluder: Tensor  # f 4 H W

    def __post_init__(self) -> None:
        frames, _, height, width = self.background.shape
        wide = (frames, 4, height + 2 * (height // 16), width + 2 * (width // 8))
        for name, layer, shape in (
            ("target", self.target, wide),
            ("occluder", self.occluder, (frames, 4, height, width)),
        ):
            if tuple(layer.shape) != shape:
                raise MetricError(f"the {name} layer is {tuple(layer.shape)}, but the background needs {shape}")

    @property
    def reach(self) -> tuple[int, int]:
        """Largest shift (dx, dy) in pixels that the target layer's margins allow."""
        return self.background.shape[3] // 8, self.background.shape[2] // 16

    def render(
        self, dx: int = 0, dy: int = 0, rows: slice = slice(None), columns: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """The ideal clip with its target moved ``dx`` pixels to the right and ``dy`` down.

        Args:
            dx: within ``reach``.
            dy: within ``reach``.
            rows: which rows of the picture to render.
            columns: which columns.

        Returns:
            Frames ``f 3 H W`` in [-1, 1] and the target's visible pixels ``f H W`` bool (at least half covered).
        """
        target, occluder = self._moved(dx, dy)[:, :, rows, columns], self.occluder[:, :, rows, columns]
        frames = _over(occluder, _over(target, self.background[:, :, rows, columns]))
        return frames, self.visible(dx, dy, rows, columns)

    def visible(self, dx: int = 0, dy: int = 0, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """The target's visible pixels alone, of :meth:`render`, for whoever needs no frames."""
        return self._moved(dx, dy)[:, 3, rows, columns] * (1 - self.occluder[:, 3, rows, columns]) >= 0.5

    def _moved(self, dx: int, dy: int) -> Tensor:
        _, _, height, width = self.background.shape
        mx, my = self.reach
        return self.target[:, :, my - dy : my - dy + height, mx - dx : mx - dx + width]

    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the picture that the target can touch at some shift, over all frames."""
        _, _, height, width = self.background.shape
        mx, my = self.reach
        drawn = (self.target[:, 3] > 0).any(dim=0)
        # In the layer a picture row is my lower; a shift moves it by my at most: the two margins add up.
        return _span(drawn.any(dim=1), 2 * my, height), _span(drawn.any(dim=0), 2 * mx, width)


@dataclass(frozen=True)
class Aligned:
    """The best shift of the ideal clip's target and its score."""

    psnr: float | None  # dB, capped; None where the clip shows neither source nor target
    dx: int  # pixels to the right
    dy: int  # pixels down


def residue(edited: Tensor, source: Tensor, ideal: Tensor, source_mask: Tensor, target_mask: Tensor) -> float | None:
    """Share of the pixels that the old object should have given up and that still look like it, in [0, 1], lower is better.

    Over source-minus-target pixels: nearer in RGB to the source frame than to the ideal frame (a tie isn't nearer).

    Args:
        edited: ``f 3 H W`` in [-1, 1].
        source: like ``edited``, as drawn.
        ideal: like ``edited``, as drawn.
        source_mask: ``f H W`` bool, the source object's visible pixels.
        target_mask: ``f H W`` bool, the ideal target's visible pixels.
    """
    require_same_shape(edited=edited, source=source, ideal=ideal)
    require_same_shape(pixels=edited[:, 0], source_mask=source_mask, target_mask=target_mask)
    given_up = source_mask & ~target_mask
    total = int(given_up.sum())
    if total == 0:
        return None
    nearer = squared_error(edited, source) < squared_error(edited, ideal)
    return int((nearer & given_up).sum()) / total


def object_presence(edited: Tensor, layers: IdealLayers) -> float | None:
    """Share of frames that aren't empty, in [0, 1], higher is better: anything at all stands about where the target should.

    A frame is empty if it differs from the scene without any vehicle by less than half of what the ideal frame does: root of
    the squares summed over the target's pixels, moved to where the edit differs most (|dx| <= W // 8, |dy| <= H // 16, each
    frame for itself). Frames whose ideal shows no target don't count; None if there are no others. It says nothing of what
    stands there: an untouched source may have it all.

    Args:
        edited: ``f 3 H W`` in [-1, 1].
        layers: what the ideal clip is stacked from.
    """
    require_same_shape(edited=edited, background=layers.background)
    empty, (ideal, target) = _over(layers.occluder, layers.background), layers.render()
    there = (squared_error(ideal, empty) * target).sum(dim=(1, 2), dtype=torch.float64)
    (mx, my), (rows, columns) = layers.reach, layers.window()
    bare, here = squared_error(edited, empty)[:, rows, columns], torch.zeros_like(there)
    for dx, dy in product(range(-mx, mx + 1), range(-my, my + 1)):
        moved = bare * layers.visible(dx, dy, rows, columns)
        here = torch.maximum(here, moved.sum(dim=(1, 2), dtype=torch.float64))
    asked = there > 0
    return float((here >= PRESENT**2 * there)[asked].double().mean()) if asked.any() else None


def ideal_psnr(edited: Tensor, ideal: Tensor, source_mask: Tensor, target_mask: Tensor) -> float | None:
    """PSNR of the edit against the ideal clip over source-or-target pixels, in dB, higher is better.

    Args:
        edited: ``f 3 H W`` in [-1, 1].
        ideal: like ``edited``.
        source_mask: ``f H W`` bool.
        target_mask: ``f H W`` bool.
    """
    require_same_shape(source_mask=source_mask, target_mask=target_mask)
    return psnr(edited, ideal, source_mask | target_mask)


def ideal_psnr_aligned(edited: Tensor, ideal: Tensor, source_mask: Tensor, target_mask: Tensor, layers: IdealLayers) -> Aligned:
    """Best :func:`ideal_psnr` over integer shifts of the target, one for the clip: |dx| <= W // 8, |dy| <= H // 16.

    At a shift the ideal clip is rendered again (background, moved target, occluder) and compared over source-or-moved-target
    pixels. At shift 0 the ideal clip itself is used, so the result is never below :func:`ideal_psnr`; of equally good
    shifts the smallest is named.

    Args:
        edited: ``f 3 H W`` in [-1, 1].
        ideal: like ``edited``.
        source_mask: ``f H W`` bool.
        target_mask: ``f H W`` bool, visible pixels of the target where the ideal clip has it.
        layers: what the ideal clip is stacked from.
    """
    require_same_shape(edited=edited, background=layers.background)
    best = Aligned(ideal_psnr(edited, ideal, source_mask, target_mask), 0, 0)
    rows, columns = layers.window()
    # Most of the picture is the same at every shift: its error is summed once, the window's at each shift.
    bare = squared_error(edited, _over(layers.occluder, layers.background))
    fixed = source_mask.clone()
    fixed[:, rows, columns] = False
    fixed_error, fixed_pixels = float(bare[fixed].sum(dtype=torch.float64)), int(fixed.sum())
    edited, source_mask = edited[:, :, rows, columns], source_mask[:, rows, columns]
    mx, my = layers.reach
    shifts = product(range(-mx, mx + 1), range(-my, my + 1))
    for dx, dy in sorted(shifts, key=lambda shift: abs(shift[0]) + abs(shift[1]))[1:]:
        moved, visible = layers.render(dx, dy, rows, columns)
        region = source_mask | visible
        error = (squared_error(edited, moved) * region).sum(dtype=torch.float64)
        score = psnr_of_sum(fixed_error + float(error), fixed_pixels + int(region.sum()))
        if score is not None and (best.psnr is None or score > best.psnr):
            best = Aligned(score, dx, dy)
    return best


def ideal_ssim(edited: Tensor, ideal: Tensor, source_mask: Tensor, target_mask: Tensor) -> float | None:
    """SSIM of the edit against the ideal clip, mean over source-or-target pixels, at most 1, higher is better.

    A pixel's window may reach beyond them. Arguments as for :func:`ideal_psnr`.
    """
    return ssim(edited, ideal, source_mask | target_mask)


def ideal_ssim_aligned(
    edited: Tensor, ideal: Tensor, source_mask: Tensor, target_mask: Tensor, layers: IdealLayers, at: Aligned | None = None
) -> float | None:
    """:func:`ideal_ssim` at the shift of the target that :func:`ideal_psnr_aligned` finds, which may be given as ``at``."""
    at = at or ideal_psnr_aligned(edited, ideal, source_mask, target_mask, layers)
    if at.dx == at.dy == 0:
        return ideal_ssim(edited, ideal, source_mask, target_mask)
    moved, visible = layers.render(at.dx, at.dy)
    return ideal_ssim(edited, moved, source_mask, visible)


def _aligned_psnr(edited: Tensor, ideal: Tensor, source_mask: Tensor, target_mask: Tensor, layers: IdealLayers) -> float | None:
    return ideal_psnr_aligned(edited, ideal, source_mask, target_mask, layers).psnr


class Residue(ClipMetric):
    figure = staticmethod(residue)
    name, unit, over, higher_is_better = "residue", "share", "pixels of all frames pooled", False


class ObjectPresence(ClipMetric):
    figure = staticmethod(object_presence)
    name, unit, over, higher_is_better = "object_presence", "share", "frames", True


class IdealPsnr(ClipMetric):
    figure = staticmethod(ideal_psnr)
    name, unit, over, higher_is_better = "ideal_psnr", "dB", "pixels of all frames pooled", True


class IdealPsnrAligned(ClipMetric):
    figure = staticmethod(_aligned_psnr)
    name, unit, over, higher_is_better = "ideal_psnr_aligned", "dB", "pixels of all frames pooled, best shift", True


class IdealSsim(ClipMetric):
    figure = staticmethod(ideal_ssim)
    name, unit, over, higher_is_better = "ideal_ssim", "ssim", "pixels of all frames pooled", True


class IdealSsimAligned(ClipMetric):
    figure = staticmethod(ideal_ssim_aligned)
    name, unit, over, higher_is_better = (
        "ideal_ssim_aligned",
        "ssim",
        "pixels of all frames pooled, best shift of the PSNR",
        True,
    )


def _over(layer: Tensor, below: Tensor) -> Tensor:
    """Straight-alpha ``f 4 H W`` over opaque ``f 3 H W``."""
    return torch.lerp(below, layer[:, :3], layer[:, 3:])


def _span(drawn: Tensor, margin: int, size: int) -> slice:
    """Picture positions that a layer's ``drawn`` positions (bool, ``size + margin`` of them) can reach by any shift."""
    found = torch.nonzero(drawn)
    if len(found) == 0:
        return slice(0, 0)
    return slice(max(0, int(found[0]) - margin), min(size, int(found[-1]) + 1))
