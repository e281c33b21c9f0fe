"""All figures of one edit, each with its id; what can't be measured is said, never left out in silence.

Where the right answer is known, an object is where the truth has it and moves as it was drawn. Elsewhere the old object as a
person has annotated it stands for it, or else the edit mask, and an optical flow for its motion: other numbers, so they have
other names (``..._in_annotation``, ``..._in_mask``, ``..._flow``).

``..._outside_mask`` asks whether the edit kept to its own mask, so a mask over everything wins it; that there is one background
for all rows takes a truth or an annotation (``..._outside_annotation``). An annotation holds the old object alone, and a larger
new one counts against the edit there: ``..._outside_union`` leaves out what either of annotation and mask holds.

A name that ends in ``_source``, ``_ideal``, ``_floor``, ``_ceiling`` or ``_autoencoder`` (the source through the backbone's
autoencoder and back) is what an edit is read against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import alignment, extras, ideal, identity, perceptual, preservation, regions, steadiness
from .cases import Case, Truth
from .consistency import (
    FrameConsistencyAdjacent,
    FrameConsistencyPairs,
    adjacent_consistency,
    pairwise_consistency,
)
from .features import Encoder, OpenClip, see_whole
from .metric import ClipMetric, Figure, figure
from .motion import Motion, optical_flow, still, track_motion

_DINO_SIZE = 224
NOWHERE = "nobody says where the object is; give mask=... or annotations=..."


@dataclass(frozen=True)
class Tools:
    """What measures with weights of its own; None where there is none, and ``why`` says what to do about it."""

    judge: identity.Judge | None = None
    clip: Encoder | None = None
    lpips: perceptual.Lpips | None = None
    dino: extras.Dino | None = None
    pickscore: extras.PickScore | None = None
    why: dict[str, str] = field(default_factory=dict)


class Sheet:
    """The figures of one edit while they are measured, and a line for whatever is not."""

    def __init__(self, case: Case) -> None:
        self.figures: dict[str, Figure] = {}
        self.notes: list[str] = []
        self.size = f"{case.edited.shape[3]}x{case.edited.shape[2]}"

    def add(self, kind: type[ClipMetric], value: Any, **told: str) -> None:
        """``told``: by, size, over, reference, as in :func:`eval.metric.figure`."""
        name, found = figure(kind, value, **{"size": self.size, **told})
        self.figures[name] = found

    def fact(self, name: str, value: Any, unit: str, by: str = "-") -> None:
        """A value that goes with the figures and is none itself."""
        self.figures[name] = Figure(value, f"{name}/{by}/{self.size}/clip/v1", None, unit)

    def skip(self, what: str, why: str) -> None:
        self.notes.append(f"not measured: {what}: {why}")


def measure(case: Case, tools: Tools) -> Sheet:
    """All figures of one edit; those that need a truth, a mask, a prompt or weights only where there are such."""
    sheet = Sheet(case)
    mask = None if case.mask is None else regions.pixels(case.mask, *case.edited.shape[2:])
    _background(sheet, case, mask, tools)
    if case.truth:
        _against_truth(sheet, case, case.truth, mask)
        if tools.judge:
            _judged(sheet, case, case.truth, tools.judge)
    if case.annotation is not None and mask is not None and not case.truth:
        sheet.add(regions.MaskRecall, regions.mask_recall(mask, case.annotation), over="annotated object")
        sheet.add(regions.MaskIouSource, regions.mask_iou_source(mask, case.annotation), over="annotated object")
    _steadiness(sheet, case, mask)
    _looks(sheet, case, mask, tools)
    return sheet


# ---- the background --------------------------------------------------------------------------------------------------


def _background(sheet: Sheet, case: Case, mask: Tensor | None, tools: Tools) -> None:
    for whose, (region, told) in _backgrounds(case, mask).items():
        psnr, ssim, lpips = perceptual.BACKGROUNDS[whose]
        for frames, reference in ((case.edited, ""), (case.round_trip, "autoencoder")):
            if frames is None:
                continue
            about = {"over": told, "reference": reference}
            sheet.add(psnr, preservation.psnr(frames, case.source, region), **about)
            sheet.add(ssim, preservation.background_ssim(frames, case.source, region), **about)
            if tools.lpips:
                distance = perceptual.background_lpips(frames, case.source, region, tools.lpips)
                sheet.add(lpips, distance, by=tools.lpips.id, **about)
    if mask is None and case.alpha is None:
        sheet.skip("the mask, and the background outside of it", "there is none; give mask=...")
    if not tools.lpips:
        sheet.skip("background_lpips", tools.why.get("lpips", "it has no weights"))


def _backgrounds(case: Case, mask: Tensor | None) -> dict[str, tuple[Tensor, str]]:
    """By whose word, as in :data:`eval.perceptual.BACKGROUNDS` -> ``f H W`` bool and its name."""
    found: dict[str, tuple[Tensor, str]] = {}
    outside, told = _outside_mask(case, mask)
    if case.annotation is not None and not case.truth:
        beyond, away = found["annotation"] = _beyond(case.annotation, "the annotated object")
        if outside is not None:
            found["union"] = outside & beyond, f"{told} and {away}"
    elif outside is not None:
        found["mask"] = outside, told
    if case.truth:
        found["truth"] = _beyond(case.truth.source_mask | case.truth.target_mask, "both objects")
    return found


def _outside_mask(case: Case, mask: Tensor | None) -> tuple[Tensor | None, str]:
    if case.alpha is not None:
        return case.alpha == 0, "where the composite's alpha is 0"
    return (None, "") if mask is None else _beyond(mask, "the mask")


def _beyond(inside: Tensor, name: str) -> tuple[Tensor, str]:
    return ~preservation.grow(inside, preservation.GUARD), f"beyond {preservation.GUARD} px of {name}"


# ---- the known answer ------------------------------------------------------------------------------------------------


def _against_truth(sheet: Sheet, case: Case, truth: Truth, mask: Tensor | None) -> None:
    edited, old, new = case.edited, truth.source_mask, truth.target_mask
    if mask is not None:
        sheet.add(regions.MaskAreaRatio, regions.mask_area_ratio(mask, old, new))
        sheet.add(regions.MaskRecall, regions.mask_recall(mask, old))
    if case.binary is not None:
        grid = f"{case.binary.shape[2]}x{case.binary.shape[1]}"
        sheet.add(regions.MaskIouUnion, regions.mask_iou_union(case.binary, old, new), size=grid)
        if mask is not None:
            final = regions.cells(mask, case.binary.shape[1], case.binary.shape[2])
            sheet.add(regions.MaskIouFinal, regions.mask_iou_union(final, old, new), size=grid)
    # Source and ideal both as drawn: a codec's traces in the source clip would pull the edit towards it.
    sheet.add(ideal.Residue, ideal.residue(edited, truth.source, truth.ideal, old, new))
    sheet.add(ideal.ObjectPresence, ideal.object_presence(edited, truth.layers))
    sheet.add(ideal.IdealPsnr, ideal.ideal_psnr(edited, truth.ideal, old, new))
    aligned = ideal.ideal_psnr_aligned(edited, truth.ideal, old, new, truth.layers)
    sheet.add(ideal.IdealPsnrAligned, aligned.psnr)
    sheet.add(ideal.IdealSsim, ideal.ideal_ssim(edited, truth.ideal, old, new))
    sheet.add(ideal.IdealSsimAligned, ideal.ideal_ssim_aligned(edited, truth.ideal, old, new, truth.layers, aligned))
    sheet.fact("ideal_shift", [aligned.dx, aligned.dy], "px")


def _judged(sheet: Sheet, case: Case, truth: Truth, judge: identity.Judge) -> None:
    clips = {"": case.edited, "_ceiling": truth.ideal, "_floor": case.source}
    union = truth.source_mask | truth.target_mask
    scores = identity.judge_accuracies(judge, clips, union, truth.inside, truth.target)
    told = {"by": judge.id, "size": f"{judge.encoder.size}px"}
    sheet.fact("judge_frames", scores["judge_frames"], "frames")
    for kind in (identity.JudgeVehicleAccuracy, identity.JudgeColorAccuracy, identity.JudgePatternAccuracy):
        for suffix in clips:
            sheet.add(kind, scores[kind.name + suffix], reference=suffix.removeprefix("_"), **told)


# ---- along the motion ------------------------------------------------------------------------------------------------


def _steadiness(sheet: Sheet, case: Case, mask: Tensor | None) -> None:
    edited, source = case.edited, case.source
    if len(edited) < 2:
        sheet.skip("warp error, temporal IoU", "a single frame doesn't move")
        return
    truth = case.truth
    if truth and truth.track:
        motion, told = track_motion(truth.track, *edited.shape[2:]), {"by": "true motion"}
        old, new = truth.source_mask, truth.target_mask
        kind, energy = steadiness.WarpErrorObject, steadiness.ObjectGradientEnergy
        sheet.add(kind, steadiness.warp_error(edited, motion, new), **told)
        sheet.add(kind, steadiness.warp_error(source, motion, old), reference="source", **told)
        sheet.add(kind, steadiness.warp_error(truth.ideal, motion, new), reference="ideal", **told)
        sheet.add(energy, steadiness.gradient_energy(edited, new))
        sheet.add(energy, steadiness.gradient_energy(source, old), reference="source")
        sheet.add(energy, steadiness.gradient_energy(truth.ideal, new), reference="ideal")
        ground = preservation.background(old, new)
        if truth.still_camera:
            rest = still(len(source), *edited.shape[2:])
            _pair(sheet, steadiness.WarpErrorBackgroundStill, case, (rest, rest), ground, "true motion")
        else:
            flow = optical_flow(source)
            _pair(sheet, steadiness.WarpErrorBackgroundFlow, case, (flow, flow), ground, "DIS flow of the source")
        if mask is not None:
            sheet.add(steadiness.MaskTemporalIou, steadiness.temporal_iou(mask, motion), **told)
            sheet.add(steadiness.MaskTemporalIou, steadiness.temporal_iou(old, motion), reference="source", **told)
        return
    region, whose = _object(case, mask)
    if region is None:
        sheet.skip("warp error, gradient energy, temporal IoU", NOWHERE)
        return
    within, beyond, energy = steadiness.REGIONS[whose]
    flow, by = optical_flow(source), "DIS flow of the source"
    # Where the object is, the edit may have another shape than the source: its own flow there.
    _pair(sheet, within, case, (optical_flow(edited), flow), region, "DIS flow of each clip")
    outside, told = _backgrounds(case, mask).get(whose, (None, ""))
    if outside is not None:
        _pair(sheet, beyond, case, (flow, flow), outside, by, told)
    for frames, reference in ((edited, ""), (source, "source")):
        sheet.add(energy, steadiness.gradient_energy(frames, region), reference=reference)
    if mask is not None:
        sheet.add(steadiness.MaskTemporalIouFlow, steadiness.temporal_iou(mask, flow), by=by)
    if case.annotation is not None:
        value = steadiness.temporal_iou(case.annotation, flow)
        sheet.add(steadiness.MaskTemporalIouFlow, value, by=by, reference="source")


def _pair(
    sheet: Sheet, kind: type[ClipMetric], case: Case, motions: tuple[Motion, Motion], region: Tensor, by: str, over: str = ""
) -> None:
    """The edit's warp error and the source's own over one region."""
    for frames, motion, reference in zip((case.edited, case.source), motions, ("", "source"), strict=True):
        sheet.add(kind, steadiness.warp_error(frames, motion, region), by=by, over=over, reference=reference)


# ---- what encoders see -----------------------------------------------------------------------------------------------


def _looks(sheet: Sheet, case: Case, mask: Tensor | None, tools: Tools) -> None:
    asked, (region, whose) = case.asked, _crop(case, mask)
    prompt, image = asked.target_prompt, asked.image
    if prompt is None:
        sheet.skip("alignment with the prompt", asked.missing or "give target_prompt=...")
    if image is None:
        sheet.skip("alignment with the target image", asked.missing)
    if region is None:
        sheet.skip("alignment of the object alone", NOWHERE)
    if tools.clip:
        _seen_by_clip(sheet, case, region, whose, tools.clip)
    else:
        sheet.skip("clip_text, clip_image, frame_consistency, frame_accuracy", tools.why.get("clip", "give clip=..."))
    if tools.dino and image is not None:
        told = {"by": tools.dino.id, "size": f"{_DINO_SIZE}px"}
        whole, cut = (tools.dino.images(p) for p in alignment.reference_pictures(*image, _DINO_SIZE))
        sheet.add(alignment.DinoImage, alignment.image_alignment(tools.dino.images(case.edited), whole), **told)
        if region is not None:
            crops = alignment.masked_crops(case.edited, region, _DINO_SIZE)
            value = alignment.image_alignment(tools.dino.images(crops), cut) if len(crops) else None
            sheet.add(alignment.CROPS[whose][2], value, **told)
    elif not tools.dino:
        sheet.skip("dino_image", tools.why.get("dino", "give dino=..."))
    if tools.pickscore and prompt is not None:
        vectors = tools.pickscore.embed(case.edited, prompt)
        value = extras.pickscore(*vectors, tools.pickscore.scale)
        sheet.add(extras.PickScoreMetric, value, by=tools.pickscore.id, size="model's own")
    elif not tools.pickscore:
        sheet.skip("pickscore", tools.why.get("pickscore", "give pickscore=..."))


def _object(case: Case, mask: Tensor | None) -> tuple[Tensor | None, str]:
    """Where to look for the object, ``f H W`` bool, and who says so: annotation or mask, the one that all rows share first."""
    if case.annotation is not None and not case.truth:
        return case.annotation, "annotation"
    return mask, "mask"


def _crop(case: Case, mask: Tensor | None) -> tuple[Tensor | None, str]:
    """As :func:`_object`, by the truth where there is one; empty in frames that don't count."""
    if not case.truth:
        return _object(case, mask)
    counted = torch.tensor(case.truth.inside) >= identity.MIN_INSIDE
    return (case.truth.source_mask | case.truth.target_mask) & counted[:, None, None], "truth"


def _seen_by_clip(sheet: Sheet, case: Case, region: Tensor | None, whose: str, clip: Encoder) -> None:
    if case.conditioner and isinstance(clip, OpenClip) and clip.conditions(case.conditioner):
        sheet.notes.append(f"{clip.id} also conditions the model: it praises itself in clip_image and clip_text")
    prompt, image, told = case.asked.target_prompt, case.asked.image, {"by": clip.id, "size": f"{clip.size}px"}
    caption = None if prompt is None else clip.texts([prompt])[0]
    whole, cut = (clip.images(p) for p in alignment.reference_pictures(*image, clip.size)) if image else (None, None)
    text, picture, _ = alignment.CROPS[whose]
    for frames, reference in ((case.edited, ""), (case.source, "source")):
        seen = see_whole(clip, frames)
        sheet.add(FrameConsistencyAdjacent, adjacent_consistency(seen), reference=reference, **told)
        sheet.add(FrameConsistencyPairs, pairwise_consistency(seen), reference=reference, **told)
        crops = None if region is None else alignment.masked_crops(frames, region, clip.size)
        near = None if crops is None else clip.images(crops) if len(crops) else seen[:0]
        if caption is not None:
            sheet.add(alignment.ClipText, alignment.text_alignment(seen, caption), reference=reference, **told)
            if near is not None:
                sheet.add(text, alignment.text_alignment(near, caption), reference=reference, **told)
        if whole is not None and cut is not None:
            sheet.add(alignment.ClipImage, alignment.image_alignment(seen, whole), reference=reference, **told)
            if near is not None:
                sheet.add(picture, alignment.image_alignment(near, cut), reference=reference, **told)
        if not reference:
            _frame_accuracy(sheet, case, seen, caption, clip, told)


def _frame_accuracy(
    sheet: Sheet, case: Case, seen: Tensor, caption: Tensor | None, clip: Encoder, told: dict[str, str]
) -> None:
    if caption is None or case.asked.source_prompt is None:
        sheet.skip("frame_accuracy", "it needs both prompts; give source_prompt=... and target_prompt=...")
        return
    before = clip.texts([case.asked.source_prompt])[0]
    sheet.add(alignment.FrameAccuracy, alignment.frame_accuracy(seen, caption, before), **told)
