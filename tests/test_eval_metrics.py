"""Every metric as torchmetrics has it: the mean of its pure function over clips, its direction, and a name of its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import eval.figures  # noqa: F401 - with it every metric is defined
from eval.ideal import IdealLayers
from eval.metric import ClipMetric
from eval.motion import still
from eval.perceptual import Lpips

FRAMES, HEIGHT, WIDTH = 3, 64, 72


def every(kind: type[ClipMetric] = ClipMetric) -> Iterator[type[ClipMetric]]:
    for below in kind.__subclasses__():
        yield below
        yield from every(below)


METRICS = sorted(set(every()), key=lambda kind: (kind.__module__, kind.__name__))


class Distance(Lpips):
    def __init__(self) -> None:
        self.id = "stub"

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        return (one - other).abs().mean(1)


def arguments(seed: int) -> dict[str, Any]:
    """A random clip's value for every argument that a figure may have, by the argument's name."""
    draw = torch.Generator().manual_seed(seed)

    def picture(channels: int = 3, rows: int = HEIGHT, columns: int = WIDTH) -> Tensor:
        return torch.rand(FRAMES, channels, rows, columns, generator=draw) * 2 - 1

    source, ideal = picture(), picture()
    regions = torch.zeros(4, FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    regions[:, :, 8:24, 8:32] = torch.rand(4, FRAMES, 16, 24, generator=draw) < 0.7
    caption, target = torch.randn(2, 5, generator=draw)
    pictures = torch.stack([target if number <= seed else caption for number in range(FRAMES)])
    layer = picture(4, HEIGHT + 2 * (HEIGHT // 16), WIDTH + 2 * (WIDTH // 8))
    layer[:, 3] = (layer[:, 3] > 0).float()
    layers = IdealLayers(picture(), layer, torch.zeros(FRAMES, 4, HEIGHT, WIDTH))
    edited = (source + ideal) / 2
    edited[: 1 + seed] = layers.background[: 1 + seed]  # nothing stands there
    return {
        "pictures": pictures + 0.1 * torch.randn(FRAMES, 5, generator=draw),
        "caption": caption,
        "references": torch.randn(1, 5, generator=draw),
        "target": target,
        "scale": 50.0,
        "edited": edited,
        "frames": picture(),
        "source": source,
        "ideal": ideal,
        "reference": ideal,
        "source_mask": regions[0],
        "target_mask": regions[1],
        "mask": regions[2],
        "binary": regions[3],
        "region": ~regions[0],
        "alpha": regions[2].to(torch.uint8) * 255,
        "layers": layers,
        "motion": still(FRAMES, HEIGHT, WIDTH),
        "lpips": Distance(),
        "seen": ["car", "bus", "car", "suv"][: 3 + seed],
        "wanted": "car",
    }


@pytest.mark.parametrize("kind", METRICS, ids=lambda kind: kind.__name__)
def test_a_metric_is_the_mean_of_its_pure_function_over_clips(kind: type[ClipMetric]) -> None:
    asked = list(inspect.signature(kind.figure).parameters.values())
    metric, figures = kind(), []
    for seed in (0, 1):
        known = arguments(seed)
        if kind.name == "frame_accuracy":  # its source is a caption, not a clip
            known["source"] = known["caption"]
        given = {part.name: known[part.name] for part in asked if part.default is part.empty}
        figures.append(kind.figure(**given))
        metric.update(**given)
    assert None not in figures and figures[0] != figures[1]
    assert metric.compute().item() == pytest.approx(sum(figures) / 2)
    assert metric.higher_is_better in (True, False) or kind.name in WITHOUT_A_BETTER_DIRECTION


# More of it may be noise, less may be blur; a mask may be too wide or too narrow, and holds the new object as well.
WITHOUT_A_BETTER_DIRECTION = {
    "mask_area_ratio",
    "mask_iou_source",
    "object_gradient_energy",
    "gradient_energy_in_mask",
    "gradient_energy_in_annotation",
}


def test_every_metric_has_a_name_of_its_own() -> None:
    names = [kind.name for kind in METRICS]
    assert len(METRICS) >= 50 and len(set(names)) == len(names)
    assert all(kind.unit and kind.over for kind in METRICS)
