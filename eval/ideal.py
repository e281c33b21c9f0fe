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
from torch.nn import functional

from .regions import GUARD, grow, psnr, psnr_of_sum, require_same_shape, squared_error, ssim

PRESENT = 0.5  # share of the ideal frame's difference from the empty scene that counts as an object
DIFFERS = 3 * (16 / 127.5) ** 2  # squared error above which a pixel isn't the empty scene's: 16 levels in each channel
DARKEST = 0.4  # least share of the light that is left in a shadow: what is darker is an object
VISIBLE = 0.2  # least share of an instance's largest visible area in a frame that counts
READABLE = 0.5  # least IoU of what is seen with a silhouette of the target whose yaw is read from it
CLEAR = 0.8  # least IoU of the ideal clip with its true shadow, where one is large and dark enough to be measured
AS_GOOD = 0.02  # difference of two silhouettes' IoU that doesn't decide between them, such as mirrored ones
ALL = slice(None)


@dataclass(frozen=True)
class IdealLayers:
    """The layers of the ideal clip, bottom to top. Colours in [-1, 1], straight alpha in [0, 1], float32."""

    background: Tensor  # f 3 H W, without object and occluder
    target: Tensor  # f 4 H+2*my W+2*mx, with margins my = H // 16 and mx = W // 8 around the picture
    occluder: Tensor  # f 4 H W

    def empty(self) -> Tensor:
        """The clip without an object."""
        return _over(self.occluder, self.background)

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


def residue_old(
    edited: Tensor, source: Tensor, ideal: Tensor, source_mask: Tensor, target_mask: Tensor
) -> float | None:
    """:func:`residue` of those pixels alone that are also nearer to the source than to any colour of the target.

    A new object that stands beside its true place isn't the old one. Its colours are those of its pixels in the same
    frame of the ideal clip, and nearer means by over one of 255 levels. The source's own value is below 1 where both
    objects have a colour in common.
    """
    require_same_shape(edited=edited, source=source, ideal=ideal)
    given_up, left = source_mask & ~target_mask, 0
    for shown, old, new, where, target in zip(edited, source, ideal, given_up, target_mask, strict=True):
        pixels, before, after = (frame[:, where].T for frame in (shown, old, new))
        others = torch.cdist(pixels, _palette(new[:, target].T), compute_mode="donot_use_mm_for_euclid_dist")
        nearest = torch.cat([others, (pixels - after).norm(dim=1, keepdim=True)], dim=1).amin(dim=1)
        left += int(((pixels - before).norm(dim=1) + 1 / 127.5 < nearest).sum())
    total = int(given_up.sum())
    return left / total if total else None


def _palette(pixels: Tensor) -> Tensor:
    """The colours of ``pixels`` ``n 3``: the mean of each group of those with equal upper four bits a channel."""
    coarse = ((pixels + 1) * 127.5).round().div(16, rounding_mode="floor")
    found, which, count = coarse.unique(dim=0, return_inverse=True, return_counts=True)
    return torch.zeros_like(found).index_add_(0, which, pixels) / count[:, None]


def object_presence(edited: Tensor, layers: IdealLayers) -> float | None:
    """Share of frames with any object about where the target should stand, in [0, 1]; the old object counts as well.

    A frame is empty if it differs from the scene without objects by less than half of what the ideal frame does: root
    of the squares summed over the target's pixels, moved for each frame to where the edit differs most. Frames whose
    ideal shows no target don't count.
    """
    require_same_shape(edited=edited, background=layers.background)
    empty, (ideal, target) = layers.empty(), layers.render()
    expected = (squared_error(ideal, empty) * target).sum(dim=(1, 2), dtype=torch.float64)
    (mx, my), (rows, columns) = layers.reach, layers.window()
    error, found = squared_error(edited, empty)[:, rows, columns], torch.zeros_like(expected)
    for dx, dy in product(range(-mx, mx + 1), range(-my, my + 1)):
        moved = error * layers.visible(dx, dy, rows, columns)
        found = torch.maximum(found, moved.sum(dim=(1, 2), dtype=torch.float64))
    counted = expected > 0
    return float((found >= PRESENT**2 * expected)[counted].double().mean()) if counted.any() else None


def instances_shown(edited: Tensor, source: Tensor, ideal: Tensor, empty: Tensor, instances: Tensor) -> float | None:
    """Share of the target's instances and frames in which the edit shows the instance, in [0, 1]; None of a single one.

    It does if, over its pixels (``instances`` ``k f H W``), the edit is nearer in RGB to the ideal clip than both to
    the source and to the ``empty`` scene. Frames with under 20 % of an instance's largest visible area don't count.
    """
    require_same_shape(edited=edited, source=source, ideal=ideal, empty=empty)
    if len(instances) < 2:
        return None
    areas = instances.sum(dim=(2, 3))
    counted = (areas >= VISIBLE * areas.amax(dim=1, keepdim=True)) & (areas > 0)
    right, old, none = (
        torch.einsum("fhw,kfhw->kf", squared_error(edited, clip).double(), instances.double())
        for clip in (ideal, source, empty)
    )
    return float(((right < old) & (right < none))[counted].double().mean()) if counted.any() else None


def shadow_iou(
    edited: Tensor, source: Tensor, ideal: Tensor, empty: Tensor, masks: tuple[Tensor, Tensor],
    shadows: tuple[Tensor, Tensor],
) -> float | None:  # fmt: skip
    """Intersection over union of the edit's shadow with the ideal clip's, over all frames pooled, in [0, 1].

    A pixel of the edit is in shadow if it has the colour of the ``empty`` scene with less of its light than a
    threshold: the one, in steps of 0.01, at which the ideal clip agrees best with its true shadow, about midway between
    1 and what the full shadow leaves. Where the old object was it must also be as near to the ideal clip as to the
    source. Counted are the pixels around both shadows, without the target and a rim of one pixel. None where not even
    the ideal clip shows its shadow, as may happen under an overcast sky.

    ``masks``, ``shadows``: of source and target object, ``f H W`` bool.
    """
    require_same_shape(edited=edited, source=source, ideal=ideal, empty=empty)
    (old, new), true = masks, shadows[1]
    near = grow(shadows[0] | true, GUARD) & ~grow(new, 1)
    if not (true & near).any():
        return None

    def agreement(found: Tensor) -> float:
        return int((found & true & near).sum()) / int(((found | true) & near).sum())

    light = light_left(ideal, empty)
    scores = {percent: agreement(light < percent / 100) for percent in range(50, 100)}
    best = [percent / 100 for percent, score in scores.items() if score == max(scores.values())]
    if max(scores.values()) < CLEAR:
        return None
    threshold = best[len(best) // 2]
    kept = old & (squared_error(edited, source) < squared_error(edited, ideal))
    return agreement((light_left(edited, empty) < threshold) & ~kept)


def light_left(frames: Tensor, empty: Tensor) -> Tensor:
    """Share ``f H W`` of the ``empty`` scene's light that is left in ``frames``; 1 where a pixel is no shade of it.

    The share is that of the empty scene's colour, from black, which is nearest to the pixel. A pixel of another colour,
    or with less light than :data:`DARKEST`, shows an object.
    """
    ground, shown = (empty + 1).double(), (frames + 1).double()
    share = (shown * ground).sum(dim=1) / ground.square().sum(dim=1).clamp(min=1e-6)
    alike = squared_error(shown, share[:, None] * ground) <= DIFFERS
    return torch.where(alike & (share >= DARKEST), share.clamp(max=1), 1)


def yaw_error(edited: Tensor, layers: IdealLayers, yaws: Tensor, shadows: tuple[Tensor, Tensor]) -> float | None:
    """Angle between the yaw at which the edit shows the target and the true one, in degrees, mean over frames.

    ``yaws`` ``f n H W`` bool has the target's silhouettes at 0, 360 / n, ... degrees from its true yaw. What the edit
    shows are pixels around them that differ from the empty scene by over 16 of 255 levels (root mean square of the
    channels); around the true ``shadows`` a darker shade of the scene is no object. Each silhouette is moved onto the
    centre of these pixels, by the layers' reach at most. The angle is that of the best IoU, or the smallest of those
    as good within 0.02, since mirrored silhouettes look alike. Frames without an IoU of 0.5 don't count.
    """
    require_same_shape(edited=edited, background=layers.background)
    empty = layers.empty()
    shown = (squared_error(edited, empty) > DIFFERS) & grow(yaws.any(dim=1), *layers.reach)
    shown &= ~(grow(shadows[0] | shadows[1], 1) & (light_left(edited, empty) < 1))
    turned = torch.arange(yaws.shape[1]) * 360 / yaws.shape[1]
    angles, found = torch.minimum(turned, 360 - turned), []
    unhidden = layers.occluder[:, 3] < 0.5
    for seen, silhouettes, free in zip(shown & unhidden, yaws, unhidden, strict=True):
        moved = torch.stack([_centred(each, seen, layers.reach) for each in silhouettes]) & free
        ious = (seen & moved).sum(dim=(1, 2)) / (seen | moved).sum(dim=(1, 2)).clamp(min=1)
        if (best := ious.max()) >= READABLE:
            found.append(float(angles[ious >= best - AS_GOOD].min()))
    return sum(found) / len(found) if found else None


def _centred(mask: Tensor, on: Tensor, reach: tuple[int, int]) -> Tensor:
    """``mask`` ``H W`` moved onto the centre of mass of the mask ``on``, by ``reach`` pixels (x, y) at most."""
    if not (mask.any() and on.any()):
        return mask
    down, right = (on.nonzero().float().mean(dim=0) - mask.nonzero().float().mean(dim=0)).round().long().tolist()
    (mx, my), (height, width) = reach, mask.shape
    top, left = my - max(-my, min(my, down)), mx - max(-mx, min(mx, right))
    return functional.pad(mask, (mx, mx, my, my))[top : top + height, left : left + width]


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
    error = squared_error(edited, layers.empty())
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
