"""Where source branch and target branch disagree -> EditMask (METHOD 5). Masks: 1 = edit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d, avg_pool3d, max_pool2d

from tave.conditions import Condition, stack
from tave.denoiser import NoisePredictor
from tave.inversion import Trajectory
from tave.options import OptionError, choice, within
from tave.schedule import Schedule, ddim_step

# A step whose mean disagreement is under this share of mean |eps_src| says nothing: it is rounding.
SILENCE = 1e-3
# The share of a cell's pixels that must have changed, or be an object's, for the cell to count as edited.
CHANGED = 0.3
# And of the cells around it, itself included: a lone cell is the codec's or the autoencoder's doing.
CROWD = 0.4
# The `fixed` threshold looks at the map clamped at this many times its mean.
CLAMP = 3.0

Evidence = Callable[[Tensor, int], Tensor]
"""(latents `b f c h w`, t) -> `b f 1 h w` >= 0: where the source's own object is."""


class MaskError(ValueError):
    """A mask that can't be computed as asked; the message names the input and the remedy."""


def check_part(name: str, part: Sequence[float]) -> None:
    """Raise :class:`OptionError` unless ``part`` is [first, last] with 0 <= first < last <= 1."""
    if len(part) != 2 or not 0 <= part[0] < part[1] <= 1:
        raise OptionError(f"{name}={list(part)} is no part: give [first, last] with 0 <= first < last <= 1")


def part_of(part: Sequence[float], total: int) -> list[int]:
    """Upper levels, in sampling order, of those of ``total`` steps that lie in ``part`` = [first, last].

    0 is the noisiest end (level ``total``), 1 the clean one. A step counts where its middle does, so that
    parts which partition [0, 1] partition the steps.
    """
    first, last = part
    return [total - step for step in range(total) if first <= (step + 0.5) / total < last]


def check_holds(name: str, part: Sequence[float], total: int) -> None:
    """Raise :class:`OptionError` unless ``part`` holds a step of ``total``."""
    if not part_of(part, total):
        raise OptionError(f"{name}={list(part)} holds none of inversion.steps={total} steps: widen it")


@dataclass(frozen=True)
class MaskOptions:
    """How two branches become a mask. Sizes in latent cells and frames; ``steps``: a part of the schedule.

    ``union`` is with the source object's own evidence: cross_attention of the words that the target prompt lacks |
    unconditional, |eps_src - eps_null| | disputed, the geometric mean of that and of the disagreement: scenery that the
    source prompt names speaks in the former too, yet both branches are told of it. ``outline``: the region is drawn anew
    around the source object's outline and the target in its place, where one is put or shown there; a given region stays.
    """

    branches: str = "shared"  # shared: both read the inversion's z_t | separate: each its own trajectory
    weight: str = "per_step"  # per_step: each step's map divided by its mean | uniform
    steps: list[float] = field(default_factory=lambda: [0.0, 1.0])  # 0 noisy, 1 clean
    guidance_scale: float = 1.0
    threshold: str = "otsu"  # otsu | fixed (after clamping at 3x the mean) | quantile
    fixed: float = 0.5
    quantile: float = 0.8
    smooth: int = 3  # side of the box, odd; 1 = none
    smooth_time: int = 1  # frames in the box, odd; 1 = none
    dilate: int = 1
    union: str = "none"  # none | cross_attention | unconditional | disputed
    outline: str = "none"  # none: cells as they were found | colour: to where the source object's colours end
    settle: float = 0.0  # after sampling: what changed less, as a share of the range, is the source's again; 0 = off
    region: str = "found"  # found: as above | whole: every cell is edited

    def __post_init__(self) -> None:
        choice("mask.region", self.region, ("found", "whole"))
        choice("mask.branches", self.branches, ("separate", "shared"))
        choice("mask.weight", self.weight, ("uniform", "per_step"))
        choice("mask.threshold", self.threshold, ("fixed", "otsu", "quantile"))
        choice("mask.outline", self.outline, ("none", "colour"))
        choice("mask.union", self.union, ("none", "cross_attention", "unconditional", "disputed"))
        check_part("mask.steps", self.steps)
        within("mask.guidance_scale", self.guidance_scale, 0, 100)
        within("mask.fixed", self.fixed, 0, 1)
        within("mask.quantile", self.quantile, 0, 1)
        within("mask.dilate", self.dilate, 0, 64)
        within("mask.settle", self.settle, 0, 1)
        for name in ("smooth", "smooth_time"):
            within(f"mask.{name}", getattr(self, name), 1, 63)
            if getattr(self, name) % 2 == 0:
                raise OptionError(f"mask.{name}={getattr(self, name)} has no middle: give an odd number")


@dataclass(frozen=True)
class EditMask:
    """The region to edit, one mask per frame on the latent grid; 1 = edit. Float tensors.

    ``soft`` `1 f 1 h w` in [0, 1]: the averaged, smoothed, normalised disagreement. ``binary`` `1 f 1 h w` in
    {0, 1}: thresholded, and united with the evidence if asked. ``mask`` `1 f 1 h w`: dilated; what sampling
    uses, and then what :func:`settle` leaves of it. ``per_step`` `T' f h w` >= 0: the weighted maps that were averaged,
    noisiest step first. ``evidence`` `1 f 1 h w` in [0, 1]: the soft map of the source's own object, where a union asked
    for it. ``own`` `1 f 1 h w` in {0, 1}: the cells of the source's own object by that map, without one ``binary``.
    ``outline`` `f 1 H W` in {0, 1}: the source's own object to the pixel, where it was asked for and found.
    """

    soft: Tensor
    binary: Tensor
    mask: Tensor
    per_step: Tensor
    evidence: Tensor | None = None
    own: Tensor | None = None
    outline: Tensor | None = None


def given_mask(region: Tensor) -> EditMask:
    """A region that is known beforehand, ``1 f 1 h w`` in {0, 1}, as a mask: nothing is measured, nothing grown."""
    return EditMask(region, region, region, per_step=region.new_zeros(0, *region[0, :, 0].shape), own=region)


def to_cells(pixels: Tensor, h: int, w: int) -> Tensor:
    """A region on the pixels ``f 1 H W``, 1 = edit -> ``1 f 1 h w`` in {0, 1}: a cell is edited where any pixel of it is."""
    return (adaptive_max_pool2d(pixels, (h, w)) > 0).to(pixels)[None]


class _Reading(NamedTuple):
    """What one step says: two maps `f h w`, and the mean |eps_src| that rounding is measured by."""

    disagreement: Tensor
    evidence: Tensor | None
    magnitude: Tensor


@torch.no_grad()
def find_mask(
    denoiser: NoisePredictor,
    schedule: Schedule,
    trajectory: Trajectory,
    source: Condition,
    target: Condition,
    options: MaskOptions = MaskOptions(),
    evidence: Evidence | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> EditMask:
    """Compare the noise that two conditions predict along one trajectory (METHOD 5).

    ``D_t[f,y,x] = mean_c |eps_src - eps_trg|``, averaged over the chosen steps, smoothed, normalised, and
    binarised over the whole clip at once. Conditions that agree give an empty mask, whatever the evidence
    says: with nothing to edit there is no old object to remove. ``evidence`` is asked for
    ``union=cross_attention`` alone. Raises :class:`MaskError` for a batch of clips, another schedule's
    trajectory and a union without evidence, :class:`OptionError` for a part of the schedule that holds no step.
    """
    levels, clips = trajectory.latents.shape[:2]
    if levels != schedule.steps + 1:
        raise MaskError(f"trajectory has {levels - 1} steps, the schedule {schedule.steps}: use the one it was made with")
    if clips != 1:
        raise MaskError(f"trajectory holds {clips} clips: find the mask of one clip at a time")
    if options.union == "cross_attention" and evidence is None:
        raise MaskError("mask.union=cross_attention has no evidence: pass tave.evidence.attention_evidence(...)")
    check_holds("mask.steps", options.steps, schedule.steps)
    total = len(part_of(options.steps, schedule.steps))
    readings: list[_Reading] = []
    for reading in _readings(denoiser, schedule, trajectory, source, target, options, evidence):
        readings.append(reading)
        if on_step is not None:
            on_step(len(readings), total)
    magnitudes = torch.stack([reading.magnitude for reading in readings])
    per_step = weigh([reading.disagreement for reading in readings], magnitudes, options.weight)
    soft, binary = binarise(per_step.mean(0), options)
    proof, own = None, binary
    proofs = [reading.evidence for reading in readings if reading.evidence is not None]
    if proofs:
        # attention is no difference of two noises: any of it counts
        floor = torch.zeros_like(magnitudes) if options.union == "cross_attention" else magnitudes
        proof = weigh(proofs, floor, options.weight).mean(0)
        if options.union == "disputed":
            proof = (proof * per_step.mean(0)).sqrt()
        proof, found = binarise(proof, options)
        if per_step.any():
            binary, own = torch.maximum(binary, found), found
    return EditMask(
        soft=soft[None, :, None],
        binary=binary[None, :, None],
        mask=dilate(binary, options.dilate)[None, :, None],
        per_step=per_step,
        evidence=None if proof is None else proof[None, :, None],
        own=own[None, :, None],
    )


def redrawn(found: EditMask, outline: Tensor, target: Tensor, options: MaskOptions) -> EditMask:
    """``found`` with its region drawn anew around two objects that are known to the pixel, `f 1 H W` in [0, 1].

    ``outline`` is the source object's, ``target`` the target object's in its place. A cell is edited where at least 30 % of its
    pixels are an object's.
    """
    h, w = found.binary.shape[-2:]
    objects = (torch.maximum(outline, target) > 0.5).float()
    binary = (adaptive_avg_pool2d(objects, (h, w)) >= CHANGED)[:, 0].to(found.binary)
    if not binary.any():  # objects of less than a third of a cell
        return replace(found, outline=outline)
    return replace(found, binary=binary[None, :, None], mask=dilate(binary, options.dilate)[None, :, None], outline=outline)


def settle(mask: Tensor, edited: Tensor, source: Tensor, least: float) -> Tensor:
    """What is left of ``mask`` `1 f 1 h w` once it is seen what the edit changed: the region of the composite.

    The old object's room and the new one's are only known when the new one is painted. So sampling may have a generous mask,
    and what it gave back as it was, returns to the source's own pixels. A cell has changed where at least 30 % of its
    pixels differ in some channel by more than ``least`` of the range; two fifths of its 3 x 3 neighbourhood must agree.

    Args:
        edited, source: frames `f 3 H W` in [-1, 1].
        least: 0 (the mask stays as it is) to 1.
    """
    if not least:
        return mask
    changed = ((edited - source.to(edited)).abs().amax(1, keepdim=True) > 2 * least).float()
    h, w = mask.shape[-2:]
    cells = (adaptive_avg_pool2d(changed, (h, w)) >= CHANGED).float()
    crowd = avg_pool2d(cells, 3, 1, 1, count_include_pad=False)
    return mask * (crowd > CROWD)[None].to(mask)


def _readings(
    denoiser: NoisePredictor,
    schedule: Schedule,
    trajectory: Trajectory,
    source: Condition,
    target: Condition,
    options: MaskOptions,
    evidence: Evidence | None,
) -> Iterator[_Reading]:
    """Both branches, and the null branch of the evidence, in one batch per step; read at the chosen steps."""
    total, levels = schedule.steps, part_of(options.steps, schedule.steps)
    branches = [source, target]
    # eps(null) is asked at the source branch's latents: it has no trajectory of its own
    if options.union in ("unconditional", "disputed"):
        branches.append(source.null)
    condition = stack(*branches)
    origin, edited = trajectory.level(total), trajectory.level(total)
    walk = levels if options.branches == "shared" else range(total, levels[-1] - 1, -1)
    for level in walk:
        if options.branches == "shared":
            origin = edited = trajectory.level(level)
        latents = torch.cat([origin, edited, *[origin] * (len(branches) - 2)])
        noise = denoiser(latents, schedule.timesteps[level], condition, options.guidance_scale).noise
        if level in levels:
            wide = noise.to(torch.promote_types(noise.dtype, torch.float32))
            proof = None
            if options.union in ("unconditional", "disputed"):
                proof = (wide[0] - wide[2]).abs().mean(1)
            elif options.union == "cross_attention" and evidence is not None:
                proof = evidence(origin, schedule.timesteps[level])[0, :, 0].to(wide)
            yield _Reading((wide[0] - wide[1]).abs().mean(1), proof, wide[0].abs().mean())
        if options.branches == "separate":
            stepped = ddim_step(latents, noise, schedule.alphas[level], schedule.alphas[level - 1])
            origin, edited = stepped[:1], stepped[1:2]


def weigh(maps: Sequence[Tensor], magnitudes: Tensor, weight: str) -> Tensor:
    """Maps `f h w` of each step, >= 0 -> `T' f h w`, those at rounding's size silenced to zero (METHOD 5).

    ``magnitudes`` `T'` is mean |eps_src|. ``per_step`` divides each map by its own mean over the clip, so
    that every step that speaks speaks as loudly. Both branches run in one batch, whose rows differ by
    rounding even for one condition: so ``uniform`` is silenced by the same rule.
    """
    stacked = torch.stack(list(maps))
    means = stacked.mean(dim=(1, 2, 3), keepdim=True)
    heard = means > SILENCE * magnitudes.view(-1, 1, 1, 1)
    scaled = stacked / means if weight == "per_step" else stacked
    return torch.where(heard, scaled, torch.zeros_like(stacked))


def binarise(disagreement: Tensor, options: MaskOptions) -> tuple[Tensor, Tensor]:
    """Averaged map `f h w` >= 0 -> soft in [0, 1] and binary in {0, 1}; one threshold for the whole clip.

    A map of zeros gives zeros. Soft is the smoothed map over its maximum, or, for ``fixed``, over 3x its mean
    and clamped.
    """
    if not disagreement.any():
        return torch.zeros_like(disagreement), torch.zeros_like(disagreement)
    soft = smooth(disagreement, options.smooth, options.smooth_time)
    if options.threshold == "fixed":
        soft = (soft / (CLAMP * soft.mean())).clamp(max=1)
        threshold = options.fixed
    else:
        soft = soft / soft.amax()
        threshold = otsu(soft) if options.threshold == "otsu" else float(torch.quantile(soft, options.quantile))
    return soft, (soft > threshold).to(soft)


def smooth(maps: Tensor, side: int, frames: int) -> Tensor:
    """Mean of `f h w` over boxes of ``frames`` x ``side`` x ``side``, odd; at an edge over what is inside."""
    padding = (frames // 2, side // 2, side // 2)
    return avg_pool3d(maps[None, None], (frames, side, side), 1, padding, count_include_pad=False)[0, 0]


def otsu(values: Tensor, bins: int = 256) -> float:
    """The threshold in (0, 1] with most variance between the two classes of ``values`` in [0, 1] (Otsu 1979).

    Values above it are foreground. Empty bins between two classes make a plateau of equal maxima: its middle
    is taken.
    """
    index = (values.detach().flatten().double().cpu() * bins).long().clamp(0, bins - 1)
    count = torch.bincount(index, minlength=bins).double()
    below, mass = count.cumsum(0), (count * torch.arange(bins)).cumsum(0)
    pairs = below * (count.sum() - below)
    between = (mass[-1] * below - mass * count.sum()) ** 2 / pairs.clamp(min=1)
    best = torch.nonzero(between == between.max()).flatten()
    return (float(best[0] + best[-1]) / 2 + 1) / bins


def prominent(say: Tensor, inside: Tensor, share: float = 1.0) -> Tensor:
    """Where ``say`` `... h w` >= 0 is above a ``share`` of Otsu's threshold of its values ``inside``, alike, bool: bool."""
    most = say[inside].max().clamp(min=1e-8)
    return (say > share * otsu(say[inside] / most) * most) & inside


def dilate(mask: Tensor, cells: int) -> Tensor:
    """Grow the mask `f h w` by ``cells`` in the eight directions, each frame alone."""
    return max_pool2d(mask[:, None], 2 * cells + 1, 1, cells)[:, 0]
