"""The table of metrics: for each its pure function, unit, aggregation, direction, region and version.

Names. Where the right answer is known, an object is where the truth has it and moves as it was drawn. Elsewhere an
annotation of the old object replaces the truth, or else the edit mask, and an optical flow its motion: other numbers,
with other names (``..._in_annotation``, ``..._in_mask``, ``..._flow``). ``..._outside_mask`` measures whether the edit
kept to its own mask, so a mask over everything wins it; a background that all methods share takes a truth or an
annotation. An annotation holds the old object alone, so a larger new one counts against the edit in
``..._outside_annotation``; ``..._outside_union`` leaves out both annotation and mask. A name that ends in one of
:data:`REFERENCES` is a value that the edit is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchmetrics
from torch import Tensor

from . import ideal, judge, motion, regions
from .encoders import PickScore
from .tables import REFERENCES

OUTSIDE = {"truth": "", "mask": "_outside_mask", "annotation": "_outside_annotation", "union": "_outside_union"}
CROPS = {"truth": "_crop", "mask": "_in_mask", "annotation": "_in_annotation"}
POOLED = "pixels of all frames pooled"


@dataclass(frozen=True)
class Metric:
    """The facts of one metric."""

    name: str
    function: Callable[..., float | None]
    unit: str
    aggregation: str  # how pixels and frames become the clip's one number
    higher_is_better: bool | None = None  # None: no direction is better
    region: str = "frame"  # frame, or what defines the region: truth | annotation | mask | union (of the two)
    version: int = 1  # increases with every change of formula


@dataclass(frozen=True)
class Figure:
    """A measured value; equal ids make two of them comparable."""

    value: Any  # None where no pixel or frame counts
    id: str
    higher_is_better: bool | None
    unit: str

    def facts(self) -> dict[str, Any]:
        """What ``metrics.json`` records beside the value."""
        return {"id": self.id, "higher_is_better": self.higher_is_better, "unit": self.unit}


def _metrics() -> Iterator[Metric]:
    """Name, function, unit, aggregation, direction and region of each metric."""
    for region, suffix in OUTSIDE.items():
        yield Metric(f"background_psnr{suffix}", regions.psnr, "dB", POOLED, True, region)
        windows = "whole windows of all frames"
        yield Metric(f"background_ssim{suffix}", regions.background_ssim, "ssim", windows, True, region)
        yield Metric(f"background_lpips{suffix}", regions.background_lpips, "lpips", POOLED, False, region)
    cells, shifted = "latent cells of all frames pooled", f"{POOLED}, best shift"
    levels, pairs, adjacent = "8-bit levels", "pixels of all pairs pooled", "pairs of pixels of all frames pooled"
    whole, neighbours = "mean over frames", "mean over neighbours"
    # The IoU before dilation, and of the mask that was applied. A flow's errors are part of the background's warp error
    # along it, so that it has no common mean with the one of a still camera.
    for facts in (
        ("mask_area_ratio", regions.mask_area_ratio, "ratio", POOLED, None, "truth"),
        ("mask_recall", regions.mask_recall, "share", POOLED, True, "truth"),
        ("mask_iou_union", regions.mask_iou_union, "share", cells, True, "truth"),
        ("mask_iou_final", regions.mask_iou_union, "share", cells, True, "truth"),
        ("mask_iou_source", regions.mask_iou_source, "share", POOLED, None, "annotation"),
        ("residue", ideal.residue, "share", POOLED, False, "truth"),
        ("residue_old", ideal.residue_old, "share", POOLED, False, "truth"),
        ("object_presence", ideal.object_presence, "share", "frames", True, "truth"),
        ("instances_shown", ideal.instances_shown, "share", "instances and frames", True, "truth"),
        ("shadow_iou", ideal.shadow_iou, "share", POOLED, True, "truth"),
        ("yaw_error", ideal.yaw_error, "degrees", whole, False, "truth"),
        ("ideal_psnr", ideal.ideal_psnr, "dB", POOLED, True, "truth"),
        ("ideal_ssim", ideal.ideal_ssim, "ssim", POOLED, True, "truth"),
        ("ideal_psnr_aligned", lambda *args: ideal.align(*args).psnr, "dB", shifted, True, "truth"),
        ("ideal_ssim_aligned", ideal.ideal_ssim_aligned, "ssim", f"{shifted} of the PSNR", True, "truth"),
        *((f"judge_{kind}_accuracy", judge.accuracy, "share", "frames", True, "truth") for kind in judge.KINDS),
        ("warp_error_object", motion.warp_error, levels, pairs, False, "truth"),
        ("warp_error_background_still", motion.warp_error, levels, pairs, False, "truth"),
        ("warp_error_background_flow", motion.warp_error, levels, pairs, False, "truth"),
        ("object_gradient_energy", motion.gradient_energy, f"squared {levels}", adjacent, None, "truth"),
    ):
        yield Metric(*facts)
    for region in ("mask", "annotation"):
        for side in ("in", "outside"):
            yield Metric(f"warp_error_{side}_{region}", motion.warp_error, levels, pairs, False, region)
        name = f"gradient_energy_in_{region}"
        yield Metric(name, motion.gradient_energy, f"squared {levels}", adjacent, None, region)
    ends, extremes = "pairs where windows end over the other pairs", "first against last window, pixels pooled"
    for suffix, region in (("", "truth"), ("_in_mask", "mask"), ("_in_annotation", "annotation")):
        yield Metric(f"seam_ratio{suffix}", motion.seam_ratio, "ratio", ends, False, region)
        yield Metric(f"object_drift{suffix}", motion.object_drift, levels, extremes, False, region)
    yield Metric("mask_temporal_iou_flow", motion.temporal_iou, "share", neighbours, True, "mask")
    objects = {"truth": "source or ideal target", "mask": "the edit mask", "annotation": "the annotated object"}
    for name in ("clip_text", "clip_image", "dino_image"):
        function = judge.text_alignment if name == "clip_text" else judge.image_alignment
        yield Metric(name, function, "cosine", whole, True)
        for region, suffix in CROPS.items():
            yield Metric(name + suffix, function, "cosine", f"{whole}, crop of {objects[region]}", True, region)
    yield Metric("frame_consistency_adjacent", judge.adjacent_consistency, "cosine", neighbours, True)
    yield Metric("frame_consistency_pairs", judge.pairwise_consistency, "cosine", "mean over all pairs", True)
    yield Metric("frame_accuracy", judge.frame_accuracy, "share", "frames", True)
    yield Metric("pickscore", PickScore.score, "logit", whole, True)


METRICS = {metric.name: metric for metric in _metrics()}
# Values that are recorded beside the metrics without being one: name -> unit.
FACTS = {"ideal_shift": "px", "judge_frames": "frames"}
# Every name that a number in metrics.json may have.
NAMES = {"judge_frames", *METRICS, *(f"{name}_{reference}" for name in METRICS for reference in REFERENCES)}


def figure(
    name: str, value: Any, *, by: str = "-", size: str = "-", over: str = "", reference: str = ""
) -> tuple[str, Figure]:
    """Name and :class:`Figure` of a value of one of :data:`METRICS` or :data:`FACTS`.

    ``by`` is the encoder with its hash or the source of the motion, ``size`` the resolution of the measurement,
    ``over`` the region where a metric has several, ``reference`` one of :data:`REFERENCES`, whose values have no better
    direction.
    """
    if name in FACTS:
        return name, Figure(value, f"{name}/{by}/{size}/clip/v1", None, FACTS[name])
    metric = METRICS[name]
    name = f"{name}_{reference}" if reference else name
    aggregation = f"{metric.aggregation}, {over}" if over else metric.aggregation
    parts = (part.replace("/", ":") for part in (name, by, size, aggregation, f"v{metric.version}"))
    return name, Figure(value, "/".join(parts), None if reference else metric.higher_is_better, metric.unit)


class ClipMetric(torchmetrics.Metric):
    """The mean over clips of one of :data:`METRICS`: ``update`` takes its function's arguments, once a clip.

    A clip that gives None doesn't count; ``compute`` is NaN if no clip counted.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    clips: Tensor

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.facts = METRICS[name]
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("clips", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def higher_is_better(self) -> bool | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The metric's direction; torchmetrics forbids assigning it."""
        return self.facts.higher_is_better

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add one clip."""
        value = self.facts.function(*args, **kwargs)
        if value is not None:
            self.total += value
            self.clips += 1

    def compute(self) -> Tensor:
        """The mean over the clips that counted."""
        return self.total / self.clips
