"""All metrics of one edit; what can't be measured is noted with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tave.scratch import spans
from tave.video import fit_frames

from . import ideal, judge, motion, regions
from .cases import Case, Truth
from .encoders import Dino, Encoder, Lpips, OpenClip, PickScore
from .metrics import CROPS, OUTSIDE, Figure, figure

DINO_SIZE = 224
UNMEASURED = "not measured: "  # the beginning of a note on a missing metric; other notes put a figure in doubt
NOWHERE = "the object's place is unknown; give mask=... or annotations=..."
FLOW = "DIS flow of the source"  # the source of a motion, for the id


@dataclass(frozen=True)
class Tools:
    """The networks that measure; None where there is none, and ``remedy`` has what to do about it."""

    judge: judge.Judge | None = None
    clip: Encoder | None = None
    lpips: Lpips | None = None
    dino: Dino | None = None
    pickscore: PickScore | None = None
    remedy: dict[str, str] = field(default_factory=dict)


@dataclass
class Report:
    """The figures of one edit by name, and a line for whatever wasn't measured or is in doubt."""

    size: str  # of the picture, WxH
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, metric: str, value: Any, **keywords: str) -> None:
        """Add a value; keywords as for :func:`eval.metrics.figure`."""
        name, found = figure(metric, value, **{"size": self.size, **keywords})
        self.figures[name] = found

    def skip(self, what: str, why: str) -> None:
        """Note why ``what`` isn't measured."""
        self.notes.append(f"{UNMEASURED}{what}: {why}")


def measure(case: Case, tools: Tools) -> Report:
    """Measure an edit; metrics that need a truth, a mask, a prompt or weights only where these exist."""
    report = Report(f"{case.edited.shape[3]}x{case.edited.shape[2]}")
    mask = None if case.masks.final is None else regions.pixels(case.masks.final, *case.edited.shape[2:])
    _background(report, case, mask, tools)
    if case.truth:
        _against_truth(report, case, case.truth, mask)
        if tools.judge:
            _judged(report, case, case.truth, tools.judge)
    elif case.annotation is not None and mask is not None:
        for name, function in (("mask_recall", regions.mask_recall), ("mask_iou_source", regions.mask_iou_source)):
            report.add(name, function(mask, case.annotation), over="annotated object")
    if len(case.edited) < 2:
        report.skip("warp error, temporal IoU", "a single frame doesn't move")
    elif case.truth:
        _along_true_motion(report, case, case.truth, mask)
    else:
        _along_flow(report, case, mask)
    _by_encoders(report, case, mask, tools)
    return report


def _background(report: Report, case: Case, mask: Tensor | None, tools: Tools) -> None:
    for which, (region, over) in _backgrounds(case, mask).items():
        for frames, reference in ((case.edited, ""), (case.round_trip, "autoencoder")):
            if frames is None:
                continue
            suffix, clips, words = OUTSIDE[which], (frames, case.source, region), {"over": over, "reference": reference}
            report.add(f"background_psnr{suffix}", regions.psnr(*clips), **words)
            report.add(f"background_ssim{suffix}", regions.background_ssim(*clips), **words)
            if tools.lpips:
                distance = regions.background_lpips(*clips, tools.lpips)
                report.add(f"background_lpips{suffix}", distance, by=tools.lpips.id, **words)
    if mask is None and case.masks.alpha is None:
        report.skip("the mask, and the background outside of it", "there is none; give mask=...")
    if not tools.lpips:
        report.skip("background_lpips", tools.remedy.get("lpips", "no weights"))


def _backgrounds(case: Case, mask: Tensor | None) -> dict[str, tuple[Tensor, str]]:
    """The regions of :data:`eval.metrics.OUTSIDE` that this case has, each with its name for the id."""
    found: dict[str, tuple[Tensor, str]] = {}
    free: tuple[Tensor, str] | None = None
    if case.masks.alpha is not None:
        free = case.masks.alpha == 0, "where the composite's alpha is 0"
    elif mask is not None:
        free = _beyond(mask, "the mask")
    if case.annotation is not None and not case.truth:
        beyond, name = found["annotation"] = _beyond(case.annotation, "the annotated object")
        if free:
            found["union"] = free[0] & beyond, f"{free[1]} and {name}"
    elif free:
        found["mask"] = free
    if case.truth:
        found["truth"] = _beyond(case.truth.changing, "both objects and shadows")
    return found


def _beyond(region: Tensor, name: str) -> tuple[Tensor, str]:
    return regions.outside(region), f"beyond {regions.GUARD} px of {name}"


def _against_truth(report: Report, case: Case, truth: Truth, mask: Tensor | None) -> None:
    edited, old, new = case.edited, truth.source_mask, truth.target_mask
    if mask is not None:
        report.add("mask_area_ratio", regions.mask_area_ratio(mask, old, new))
        report.add("mask_recall", regions.mask_recall(mask, old))
    if case.masks.binary is not None:
        height, width = case.masks.binary.shape[1:]
        final = None if mask is None else regions.cells(mask, height, width)
        for name, cells in (("mask_iou_union", case.masks.binary), ("mask_iou_final", final)):
            if cells is not None:
                report.add(name, regions.mask_iou_union(cells, old, new), size=f"{width}x{height}")
    clips = (edited, truth.ideal, old, new)
    aligned = ideal.align(*clips, truth.layers)
    for name, value in (
        # Source and ideal both as drawn: a codec's traces in the source clip would attract the edit.
        ("residue", ideal.residue(edited, truth.source, truth.ideal, old, new)),
        ("object_presence", ideal.object_presence(edited, truth.layers)),
        ("ideal_psnr", ideal.ideal_psnr(*clips)),
        ("ideal_psnr_aligned", aligned.psnr),
        ("ideal_ssim", ideal.ideal_ssim(*clips)),
        ("ideal_ssim_aligned", ideal.ideal_ssim_aligned(*clips, truth.layers, aligned)),
        ("ideal_shift", [aligned.dx, aligned.dy]),
    ):
        report.add(name, value)
    for reference, clip in (("", edited), ("source", case.source)):  # whose own is below 1 where colours are common
        value = ideal.residue_old(clip, truth.source, truth.ideal, old, new)
        report.add("residue_old", value, reference=reference)
    _of_drawn_scene(report, case, truth)


def _of_drawn_scene(report: Report, case: Case, truth: Truth) -> None:
    """Shadow, yaw and instances, of the edit and of what it is compared with."""
    clips, empty = {"": case.edited, "source": case.source, "ideal": truth.ideal}, truth.layers.empty()
    for reference, clip in clips.items():
        masks = truth.source_mask, truth.target_mask
        iou = ideal.shadow_iou(clip, truth.source, truth.ideal, empty, masks, truth.shadows)
        report.add("shadow_iou", iou, reference=reference)
        report.add("yaw_error", ideal.yaw_error(clip, truth.layers, truth.yaws, truth.shadows), reference=reference)
    if len(truth.instances) > 1:
        shown = ideal.instances_shown(case.edited, truth.source, truth.ideal, empty, truth.instances)
        report.add("instances_shown", shown)


def _judged(report: Report, case: Case, truth: Truth, by: judge.Judge) -> None:
    clips = {"": case.edited, "ceiling": truth.ideal, "floor": case.source}
    frames, scores = judge.judge_accuracies(by, clips, truth.union, truth.inside, truth.target)
    report.add("judge_frames", frames)
    for (kind, reference), value in scores.items():
        size = f"{by.encoder.size}px"
        report.add(f"judge_{kind}_accuracy", value, reference=reference, by=by.id, size=size)


def _along_true_motion(report: Report, case: Case, truth: Truth, mask: Tensor | None) -> None:
    old, new, by = truth.source_mask, truth.target_mask, "true motion of visible points"
    for clip, path, region, reference in (
        (case.edited, truth.target_motion, new, ""),
        (case.source, truth.source_motion, old, "source"),
        (truth.ideal, truth.target_motion, new, "ideal"),
    ):
        report.add("warp_error_object", motion.warp_error(clip, path, region), by=by, reference=reference)
        report.add("object_gradient_energy", motion.gradient_energy(clip, region), reference=reference)
        _windowed(report, case, "", (clip, path, region), reference, by)
    background, flow = regions.outside(truth.changing), cache(lambda: motion.optical_flow(case.source, case.scratch))
    if truth.still_camera:
        still = motion.still(len(case.source), *case.edited.shape[2:])
        _pair(report, "warp_error_background_still", case, (still, still), background, by="true motion")
    else:
        _pair(report, "warp_error_background_flow", case, (flow(), flow()), background, by=FLOW)
    if mask is not None:
        for region, reference in ((mask, ""), (old, "source")):  # a mask reaches beyond the object's visible points
            report.add("mask_temporal_iou_flow", motion.temporal_iou(region, flow()), by=FLOW, reference=reference)


def _along_flow(report: Report, case: Case, mask: Tensor | None) -> None:
    region, which = _object(case, mask)
    if region is None:
        report.skip("warp error, gradient energy, temporal IoU", NOWHERE)
        return
    flow = motion.optical_flow(case.source, case.scratch)
    # Inside the object each clip's own flow, since the edit may have another shape there.
    flows = motion.optical_flow(case.edited, case.scratch), flow
    _pair(report, f"warp_error_in_{which}", case, flows, region, by="DIS flow of each clip")
    free, over = _backgrounds(case, mask)[which]
    _pair(report, f"warp_error_outside_{which}", case, (flow, flow), free, by=FLOW, over=over)
    for frames, path, reference in zip((case.edited, case.source), flows, ("", "source"), strict=True):
        report.add(f"gradient_energy_in_{which}", motion.gradient_energy(frames, region), reference=reference)
        _windowed(report, case, f"_in_{which}", (frames, path, region), reference, "DIS flow of each clip")
    for moving, reference in ((mask, ""), (case.annotation, "source")):
        if moving is not None:
            report.add("mask_temporal_iou_flow", motion.temporal_iou(moving, flow), by=FLOW, reference=reference)


def _windowed(
    report: Report, case: Case, suffix: str, clip: tuple[Tensor, motion.Motion, Tensor], reference: str, by: str
) -> None:
    """Seam and drift of a clip (frames, their motion, the object) that was edited in several windows."""
    (frames, path, region), windows = clip, case.request.windows
    if len(windows) > 1:
        report.add(f"seam_ratio{suffix}", motion.seam_ratio(frames, path, region, windows), reference=reference, by=by)
        report.add(f"object_drift{suffix}", motion.object_drift(frames, region, windows), reference=reference)


def _pair(
    report: Report, name: str, case: Case, paths: tuple[motion.Motion, motion.Motion], region: Tensor, **keywords: str
) -> None:
    """The edit's warp error, and the source's own, over one region."""
    for frames, path, reference in zip((case.edited, case.source), paths, ("", "source"), strict=True):
        report.add(name, motion.warp_error(frames, path, region), reference=reference, **keywords)


def _object(case: Case, mask: Tensor | None) -> tuple[Tensor | None, str]:
    """Where the object is, and by which source: the annotation, which all methods share, or else the mask."""
    return (mask, "mask") if case.annotation is None else (case.annotation, "annotation")


def _by_encoders(report: Report, case: Case, mask: Tensor | None, tools: Tools) -> None:
    request, prompt, image = case.request, case.request.target_prompt, case.request.image
    if case.truth:  # empty in frames that don't count
        counted = torch.tensor(case.truth.inside) >= judge.MIN_INSIDE
        region, which = case.truth.union & counted[:, None, None], "truth"
    else:
        region, which = _object(case, mask)
    remedy = {"clip": "no encoder", "dino": "no encoder", "pickscore": "no encoder"} | tools.remedy
    for what, found, why in (
        ("alignment with the prompt", prompt, request.missing or "give target_prompt=..."),
        ("alignment with the target image", image, request.missing),
        ("alignment of the object alone", region, NOWHERE),
        ("clip_text, clip_image, frame_consistency, frame_accuracy", tools.clip, remedy["clip"]),
        ("dino_image", tools.dino, remedy["dino"]),
        ("pickscore", tools.pickscore, remedy["pickscore"]),
    ):
        if found is None:
            report.skip(what, why)
    if tools.clip:
        _by_clip(report, case, region, CROPS[which], tools.clip)
    if tools.dino and image is not None:
        targets = tuple(map(tools.dino.images, judge.reference_pictures(*image, DINO_SIZE)))
        seen = _seen(tools.dino, case.edited, lambda span: case.edited[span])
        for suffix, pictures, target in _views(tools.dino, DINO_SIZE, case.edited, seen, region, CROPS[which], targets):
            value = judge.image_alignment(pictures, target)
            report.add(f"dino_image{suffix}", value, by=tools.dino.id, size=f"{DINO_SIZE}px")
    if tools.pickscore and prompt is not None:
        report.add("pickscore", tools.pickscore.score(case.edited, prompt), by=tools.pickscore.id, size="model's own")


def _by_clip(report: Report, case: Case, region: Tensor | None, suffix: str, clip: Encoder) -> None:
    request, conditioner = case.request, case.request.conditioner
    if conditioner and isinstance(clip, OpenClip) and clip.conditions(conditioner):
        report.notes.append(f"{clip.id} also conditions the model: clip_image and clip_text favour it")
    words = {"by": clip.id, "size": f"{clip.size}px"}
    before, caption = (
        None if prompt is None else clip.texts([prompt])[0] for prompt in (request.source_prompt, request.target_prompt)
    )
    targets: tuple[Tensor, ...] = ()
    if request.image:
        targets = tuple(map(clip.images, judge.reference_pictures(*request.image, clip.size)))
    for frames, reference in ((case.edited, ""), (case.source, "source")):
        seen = _seen(clip, frames, lambda span, f=frames: fit_frames(f[span], clip.size, clip.size, clip.fit))
        found = {
            "frame_consistency_adjacent": judge.adjacent_consistency(seen),
            "frame_consistency_pairs": judge.pairwise_consistency(seen),
        }
        for ending, pictures, target in _views(clip, clip.size, frames, seen, region, suffix, targets):
            if caption is not None:
                found[f"clip_text{ending}"] = judge.text_alignment(pictures, caption)
            if targets:
                found[f"clip_image{ending}"] = judge.image_alignment(pictures, target)
        if not reference and before is not None and caption is not None:
            found["frame_accuracy"] = judge.frame_accuracy(seen, caption, before)
        for name, value in found.items():
            report.add(name, value, reference=reference, **words)
    if before is None or caption is None:
        report.skip("frame_accuracy", "it needs both prompts; give source_prompt=... and target_prompt=...")


def _views(
    eye: Encoder | Dino, size: int, frames: Tensor, seen: Tensor, region: Tensor | None, suffix: str,
    targets: tuple[Tensor, ...],
) -> list[tuple[str, Tensor, Tensor]]:  # fmt: skip
    """Whole frames, then crops of the object: ending of the metric's name, embeddings, those of the target image."""
    whole, cut = targets or (seen[:0], seen[:0])
    if region is None:
        return [("", seen, whole)]
    crops = _seen(eye, frames, lambda span: judge.masked_crops(frames[span], region[span], size))
    return [("", seen, whole), (suffix, crops, cut)]


def _seen(eye: Encoder | Dino, frames: Tensor, pictures: Callable[[slice], Tensor]) -> Tensor:
    """Embeddings `n d` of the ``pictures`` that are made of each range of frames, of which it may have none."""
    made = (pictures(span) for span in spans(len(frames)))
    found = [eye.images(some) for some in made if len(some)]
    return torch.cat(found) if found else frames.new_zeros(0, 1)
