"""The table of metrics, and the one class that averages them over clips."""

from __future__ import annotations

import pytest
import torch

from eval.background import PSNR_CAP, psnr
from eval.metrics import FACTS, METRICS, NAMES, ClipMetric, figure

CLIP, OTHER = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
EVERYWHERE = torch.ones(2, 16, 16, dtype=torch.bool)


def test_a_metric_is_the_mean_over_clips_that_have_a_value() -> None:
    metric, expected = ClipMetric("background_psnr"), psnr(OTHER, CLIP)
    assert expected is not None and metric.higher_is_better is True
    for edited, region in ((CLIP, EVERYWHERE), (OTHER, EVERYWHERE), (OTHER, ~EVERYWHERE)):
        metric.update(edited, CLIP, region)
    assert metric.compute().item() == pytest.approx((PSNR_CAP + expected) / 2)
    metric.reset()
    metric.update(OTHER, CLIP, ~EVERYWHERE)
    assert metric.compute().isnan()


def test_only_masks_and_sharpness_have_no_better_direction() -> None:
    """More gradient may be noise, less may be blur; a mask may be too wide or too narrow."""
    assert {name for name, metric in METRICS.items() if metric.higher_is_better is None} == {
        *("mask_area_ratio", "mask_iou_source", "object_gradient_energy"),
        *("gradient_energy_in_mask", "gradient_energy_in_annotation"),
    }


def test_an_id_has_all_that_makes_two_values_comparable() -> None:
    name, found = figure("clip_text_crop", 0.3, by="hub/tiny@12", size="32px", reference="source")
    assert name == "clip_text_crop_source" and name in NAMES and found.higher_is_better is None
    aggregation = "mean over frames, crop of source or ideal target"
    assert found.id == f"clip_text_crop_source/hub:tiny@12/32px/{aggregation}/v1"
    assert figure("ideal_shift", [1, 0], size="64x32")[1].id == "ideal_shift/-/64x32/clip/v1"
    assert not set(FACTS) & set(METRICS)
