"""The edit mask: where source and target branch disagree (docs/method.md, section 5). Masks: 1 = edit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, avg_pool2d, max_pool2d

from tave.config import MaskOptions, OptionError
from tave.denoiser import NoisePredictor
from tave.encoders import Condition, stack
from tave.finite import Watch
from tave.inversion import Trajectory
from tave.regions import long_pieces, pieces_over_time, pieces_with, without_specks
from tave.schedule import Schedule, ddim_step
from tave.scratch import spans
from tave.video import ranges

# A step whose mean disagreement is below this share of mean |eps_src| is rounding (docs/method.md, section 5).
ROUNDING = 1e-3
# The `fixed` threshold is applied to the map clamped at this many times its mean, as DiffEdit does.
CLAMP = 3.0
# A change counts if it is at least this many latent cells long in one direction: codec and autoencoder noise is
# shorter.
SHORTEST = 1.5
# Warnings. Distance of the two classes' means in pooled standard deviations: one normal or exponential distribution,
# cut by Otsu's threshold, has 2.6; maps of the drawn world have 4 and more.
CLEAR_SEPARATION = 3.0
LARGEST_SHARE = 1 / 3  # of the frame
MOST_PIECES = 6  # over the whole clip


class MaskError(ValueError):
    """A mask that can't be computed as requested; the message names the input and the remedy."""


def part_of(part: Sequence[float], total: int) -> list[int]:
    """Upper levels, in sampling order, of those of ``total`` steps that lie in ``part`` = [first, last].

    0 is the noisiest end (level ``total``), 1 the clean one. A step belongs where its middle lies, so that parts which
    partition [0, 1] partition the steps.
    """
    first, last = part
    return [total - step for step in range(total) if first <= (step + 0.5) / total < last]


def check_part_holds(name: str, part: Sequence[float], total: int) -> None:
    """Raise :class:`OptionError` unless ``part`` contains a step of ``total``."""
    if not part_of(part, total):
        raise OptionError(f"{name}={list(part)} contains none of the {total} steps (inversion.steps): widen it")


@dataclass(frozen=True)
class Disagreement:
    """What the network evaluations yield, before any threshold.

    ``per_step`` `T' f h w` >= 0: the weighted maps of each step, noisiest first. ``evidence`` `T' f h w` >= 0: likewise
    |eps_src - eps_null|, where the source object's own evidence was requested.
    """

    per_step: Tensor
    evidence: Tensor | None = None


@dataclass(frozen=True)
class EditMask:
    """The region to edit, one mask per frame on the latent grid; 1 = edit. Float tensors `1 f 1 h w`.

    ``soft`` in [0, 1]: the averaged, smoothed, normalised disagreement. ``binary`` in {0, 1}: thresholded, united with
    the source object's evidence where requested, without specks. ``mask``: ``binary`` dilated; sampling uses it, and
    :func:`drop_unchanged` may shrink it afterwards. ``source_object`` in {0, 1}: the source object's cells by the
    evidence, else ``binary``. ``per_step`` `T' f h w`: the maps that were averaged. ``notes``: warnings, one line each.
    """

    soft: Tensor
    binary: Tensor
    mask: Tensor
    source_object: Tensor
    per_step: Tensor
    notes: tuple[str, ...] = ()


def given_mask(region: Tensor) -> EditMask:
    """A given region ``1 f 1 h w`` in {0, 1} as a mask, without dilation."""
    return EditMask(region, region, region, region, per_step=region.new_zeros(0, *region[0, :, 0].shape))


def to_cells(pixels: Tensor, h: int, w: int) -> Tensor:
    """A region on the pixels ``f 1 H W`` -> ``1 f 1 h w`` in {0, 1}: a cell is edited where any pixel of it is."""
    return (adaptive_max_pool2d(pixels, (h, w)) > 0).to(pixels)[None]


# ---- network evaluations ---------------------------------------------------------------------------------------------


class _Reading(NamedTuple):
    """One step: two maps `f h w`, and the mean |eps_src| that rounding is measured by."""

    disagreement: Tensor
    evidence: Tensor | None
    magnitude: Tensor


@torch.no_grad()
def compare(
    denoiser: NoisePredictor,
    schedule: Schedule,
    trajectory: Trajectory,
    source: Condition,
    target: Condition,
    options: MaskOptions = MaskOptions(),
    on_step: Callable[[int, int], None] | None = None,
) -> Disagreement:
    """Compare the noise that two conditions predict along one trajectory: ``D_t[f,y,x] = mean_c |eps_src - eps_trg|``.

    Only ``branches``, ``weight``, ``steps`` and whether there is a ``union`` matter here. Raises :class:`MaskError` for
    a batch of clips or another schedule's trajectory, :class:`OptionError` for a part of the schedule without a step,
    :class:`NonFiniteError` for NaN and infinity.
    """
    levels, clips = trajectory.latents.shape[:2]
    if levels != schedule.steps + 1:
        raise MaskError(
            f"trajectory has {levels - 1} steps, the schedule {schedule.steps}: use the schedule of the inversion"
        )
    if clips != 1:
        raise MaskError(f"trajectory holds {clips} clips: find the mask of one clip at a time")
    check_part_holds("mask.steps", options.steps, schedule.steps)
    total = len(part_of(options.steps, schedule.steps))
    readings: list[_Reading] = []
    watch = Watch("masking")
    for reading in _readings(denoiser, schedule, trajectory, source, target, options):
        readings.append(reading)
        for each in (reading.disagreement, reading.evidence):
            if each is not None:
                watch.add(len(readings), "map", each)
        if on_step is not None:
            on_step(len(readings), total)
    watch.read()
    magnitudes = torch.stack([reading.magnitude for reading in readings])
    evidence = [reading.evidence for reading in readings if reading.evidence is not None]
    return Disagreement(
        weigh([reading.disagreement for reading in readings], magnitudes, options.weight),
        weigh(evidence, magnitudes, options.weight) if evidence else None,
    )


def _readings(
    denoiser: NoisePredictor,
    schedule: Schedule,
    trajectory: Trajectory,
    source: Condition,
    target: Condition,
    options: MaskOptions,
) -> Iterator[_Reading]:
    """Both branches, and the null branch of the evidence, in one batch per step; read at the chosen steps."""
    total, levels = schedule.steps, part_of(options.steps, schedule.steps)
    united = options.union != "none"
    # eps(null) is evaluated at the source branch's latents: it has no trajectory of its own
    condition = stack(source, target, source.null) if united else stack(source, target)
    origin = edited = trajectory.level(total)
    walk = levels if options.branches == "shared" else range(total, levels[-1] - 1, -1)
    for level in walk:
        if options.branches == "shared":
            origin = edited = trajectory.level(level)
        latents = torch.cat([origin, edited, origin] if united else [origin, edited])
        noise = denoiser(latents, schedule.timesteps[level], condition).noise
        if level in levels:
            wide = noise.to(torch.promote_types(noise.dtype, torch.float32))
            evidence = (wide[0] - wide[2]).abs().mean(1) if united else None
            yield _Reading((wide[0] - wide[1]).abs().mean(1), evidence, wide[0].abs().mean())
        if options.branches == "separate":
            stepped = ddim_step(latents, noise, schedule.alphas[level], schedule.alphas[level - 1])
            origin, edited = stepped[:1], stepped[1:2]


def weigh(maps: Sequence[Tensor], magnitudes: Tensor, weight: str) -> Tensor:
    """Maps `f h w` of each step, >= 0 -> `T' f h w`; those of rounding's size become zero.

    ``magnitudes`` `T'` is mean |eps_src|. ``per_step`` divides each map by its own mean over the clip, so that all
    steps count alike. Both branches run in one batch, whose rows differ by rounding even under one condition, so
    ``uniform`` follows the same rule.
    """
    stacked = torch.stack(list(maps))
    means = stacked.mean(dim=(1, 2, 3), keepdim=True)
    counted = means > ROUNDING * magnitudes.view(-1, 1, 1, 1)
    scaled = stacked / means if weight == "per_step" else stacked
    return torch.where(counted, scaled, torch.zeros_like(stacked))


# ---- from maps to a mask ---------------------------------------------------------------------------------------------


def make_mask(disagreement: Disagreement, options: MaskOptions = MaskOptions()) -> EditMask:
    """Average, smooth, normalise, binarise over the whole clip at once, unite, drop specks, dilate.

    Equal conditions give an empty mask, whatever the evidence: with nothing to edit there is no old object to remove.
    Sizes are shares of the grid's shorter side, so one setting serves every grid.
    """
    average = disagreement.per_step.mean(0)
    soft, binary = binarise(average, options)
    source_object, notes = binary, ()
    if average.any():
        notes = (separation_note(soft, binary),) if options.threshold == "otsu" else ()
        if disagreement.evidence is not None:
            evidence = disagreement.evidence.mean(0)
            if options.union == "disputed":
                evidence = (evidence * average).sqrt()
            source_object = _without_specks(binarise(evidence, options)[1], options.min_piece)
            if options.union == "disputed":  # a piece about which the branches agree throughout is not replaced
                seeds = _without_specks(binary, options.min_piece)
                kept = pieces_with(source_object.cpu().numpy() > 0, seeds.cpu().numpy() > 0)
                source_object = torch.from_numpy(kept).to(binary)
            binary = torch.maximum(binary, source_object)
        binary = _without_specks(binary, options.min_piece)
        notes = (*notes, *shape_notes(binary))
    side = min(binary.shape[-2:])
    cells = max(1, round(options.dilate * side)) if options.dilate else 0
    planes = (soft, binary, dilate(binary, cells), source_object)
    return EditMask(
        *(plane[None, :, None] for plane in planes),
        per_step=disagreement.per_step,
        notes=tuple(note for note in notes if note),
    )


def _without_specks(binary: Tensor, least: float) -> Tensor:
    return torch.from_numpy(without_specks(binary.cpu().numpy() > 0, least)).to(binary)


def binarise(values: Tensor, options: MaskOptions) -> tuple[Tensor, Tensor]:
    """Averaged map `f h w` >= 0 -> soft in [0, 1] and binary in {0, 1}; one threshold for the whole clip.

    A map of zeros gives zeros. Soft is the smoothed map over its maximum, or, for ``fixed``, over 3x its mean and
    clamped.
    """
    if not values.any():
        return torch.zeros_like(values), torch.zeros_like(values)
    soft = smooth(values, 2 * round((options.smooth * min(values.shape[-2:]) - 1) / 2) + 1)
    if options.threshold == "fixed":
        soft = (soft / (CLAMP * soft.mean())).clamp(max=1)
        threshold = options.fixed
    else:
        soft = soft / soft.amax()
        threshold = otsu(soft) if options.threshold == "otsu" else float(torch.quantile(soft, options.quantile))
    return soft, (soft > threshold).to(soft)


def smooth(maps: Tensor, side: int) -> Tensor:
    """Mean of `f h w` over boxes of ``side`` x ``side`` (odd; below 3: unchanged); at an edge over what is inside."""
    if side < 3:
        return maps
    return avg_pool2d(maps[:, None], side, 1, side // 2, count_include_pad=False)[:, 0]


def otsu(values: Tensor, bins: int = 256) -> float:
    """The threshold in (0, 1] with most variance between the two classes of ``values`` in [0, 1] (Otsu 1979).

    Values above it are foreground. Empty bins between two classes make a plateau of equal maxima: its middle is taken.
    """
    index = (values.detach().flatten().double().cpu() * bins).long().clamp(0, bins - 1)
    count = torch.bincount(index, minlength=bins).double()
    below, mass = count.cumsum(0), (count * torch.arange(bins)).cumsum(0)
    pairs = below * (count.sum() - below)
    between = (mass[-1] * below - mass * count.sum()) ** 2 / pairs.clamp(min=1)
    best = torch.nonzero(between == between.max()).flatten()
    return (float(best[0] + best[-1]) / 2 + 1) / bins


def separation(values: Tensor, inside: Tensor) -> float:
    """Distance of the means of two classes in units of their pooled standard deviation (Ashman's D); 0 for one class.

    ``values`` and ``inside`` > 0 have one shape. Otsu's threshold splits any map; this measures whether it has two
    classes.
    """
    chosen = inside > 0
    if chosen.all() or not chosen.any():
        return 0.0
    high, low = values[chosen].double(), values[~chosen].double()
    pooled = ((high.var(correction=0) + low.var(correction=0)) / 2).sqrt().clamp(min=1e-12)
    return float((high.mean() - low.mean()) / pooled)


def separation_note(soft: Tensor, binary: Tensor) -> str:
    """A warning if the map has no two classes for Otsu's threshold to separate, else ""."""
    found = separation(soft, binary)
    if found >= CLEAR_SEPARATION:
        return ""
    return (
        f"the edit region is uncertain (separation {found:.1f}, clear from {CLEAR_SEPARATION:.0f}): both branches "
        "predict nearly the same everywhere; name the objects in both prompts, or give video.mask=FILE"
    )


def shape_notes(binary: Tensor) -> tuple[str, ...]:
    """Warnings for a mask `f h w` that covers over a third of the frame, or has many pieces."""
    notes = []
    if (share := float(binary.mean())) > LARGEST_SHARE:
        notes.append(
            f"the edit region covers {share:.0%} of the frame: the prompts may differ in more than the object; "
            "describe the same place in both, give video.mask=FILE, or raise mask.quantile with mask.threshold=quantile"
        )
    pieces = int((pieces_over_time(binary.cpu().numpy() > 0)[1] > 0).sum())
    if pieces > MOST_PIECES:
        notes.append(
            f"the edit region has {pieces} separate pieces: look at mask.mp4; raise mask.smooth or mask.min_piece, "
            "or give video.mask=FILE"
        )
    return tuple(notes)


def absence_note(mask: Tensor) -> str:
    """What becomes of the frames in which the mask `1 f 1 h w` is empty, if there are any, else ""."""
    empty = [index for index, cells in enumerate(mask[0]) if not cells.any()]
    return f"nothing was found to edit in frame {ranges(empty)}: there the source comes back" if empty else ""


def dilate(mask: Tensor, cells: int) -> Tensor:
    """Grow the mask `f h w` by ``cells`` in the eight directions, each frame alone."""
    return max_pool2d(mask[:, None], 2 * cells + 1, 1, cells)[:, 0]


def drop_unchanged(mask: Tensor, edited: Tensor, unedited: Tensor, least: float) -> Tensor:
    """What remains of ``mask`` `1 f 1 h w` where the edit changed something: the region of the composite.

    The new object's extent is known only once it is generated, so sampling gets a generous mask, and cells that came
    out unchanged are reset to the source's pixels. A cell remains if a changed structure touches it: connected pixels
    that differ in some channel by more than ``least`` of the range, and extend over 1.5 cells in one direction. Thin
    structures (legs, poles) therefore remain; isolated specks do not.

    Args:
        edited, unedited: frames `f 3 H W` in [-1, 1]; ``unedited`` is the source through the autoencoder.
        least: 0 (the mask is returned as it is) to 1.
    """
    if not least:
        return mask
    h, w = mask.shape[-2:]
    cell = min(edited.shape[-2] / h, edited.shape[-1] / w)
    cells = []
    for span in spans(len(edited)):
        changed = ((edited[span] - unedited[span].to(edited)).abs().amax(1) > 2 * least).cpu().numpy()
        kept = torch.from_numpy(np.stack([long_pieces(plane, SHORTEST * cell) for plane in changed]))
        cells.append(to_cells(kept[:, None].float(), h, w))
    return mask * torch.cat(cells, dim=1).to(mask)
