"""Motion, warp error, sharpness and the mask's steadiness: by hand, and on clips with a known answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchmetrics.functional.classification import binary_jaccard_index

from eval import EvalError
from eval.motion import (
    Motion,
    gradient_energy,
    object_drift,
    optical_flow,
    seam_ratio,
    still,
    temporal_iou,
    warp_error,
)
from tave.scratch import Scratch

HEIGHT, WIDTH = 40, 56


def texture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Smooth noise: something that an optical flow can hold on to."""
    noise = torch.rand(1, 3, height + 4, width + 4, generator=torch.Generator().manual_seed(seed))
    return (avg_pool2d(noise, 5, stride=1) - 0.5)[0] * 4


def sliding(step: tuple[int, int], frames: int = 3) -> Tensor:
    """A window that a wide texture passes under, ``step`` pixels (x, y) a frame."""
    wide = texture(0, HEIGHT + 32, WIDTH + 32)
    rows, columns = (16 - step[1] * i for i in range(frames)), (16 - step[0] * i for i in range(frames))
    windows = [wide[:, y : y + HEIGHT, x : x + WIDTH] for x, y in zip(columns, rows, strict=True)]
    return torch.stack(windows).clamp(-1, 1)


def everywhere(frames: int) -> Tensor:
    return torch.ones(frames, HEIGHT, WIDTH, dtype=torch.bool)


def moving(step: tuple[int, int], frames: int = 3) -> Motion:
    """Everything moves by ``step`` pixels (x, y) a frame."""
    flow = -torch.tensor(step).float()[:, None, None].expand(frames - 1, 2, HEIGHT, WIDTH)
    x, y = torch.arange(WIDTH) - step[0], torch.arange(HEIGHT)[:, None] - step[1]
    inside = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
    return Motion(flow, inside.expand(frames - 1, -1, -1))


def test_optical_flow_finds_a_translation() -> None:
    motion = optical_flow(sliding((2, 1)))
    inner = motion.flow[:, :, 8:-8, 8:-8]
    assert inner[:, 0].median().item() == pytest.approx(-2, abs=0.1)
    assert inner[:, 1].median().item() == pytest.approx(-1, abs=0.1)
    assert motion.visible[:, 8:-8, 8:-8].float().mean() > 0.95


def test_the_flow_of_a_long_clip_is_that_of_its_pairs_and_may_lie_on_the_disk(tmp_path: Path) -> None:
    clip = torch.cat([sliding((2, 1)), sliding((-1, 2))] * 7)
    found = optical_flow(clip, Scratch(tmp_path))
    for i in (0, 15, 16, 40):
        pair = optical_flow(clip[i : i + 2])
        assert torch.equal(found.flow[i], pair.flow[0]) and torch.equal(found.visible[i], pair.visible[0])


def test_warp_error_of_plain_clips() -> None:
    clip, along, in_place = sliding((3, -2)), moving((3, -2)), still(3, HEIGHT, WIDTH)
    assert warp_error(clip, along, everywhere(3)) == pytest.approx(0, abs=0.05)
    assert (warp_error(clip, in_place, everywhere(3)) or 0) > 5
    frozen = clip[:1].expand(3, -1, -1, -1)
    assert warp_error(frozen, in_place, everywhere(3)) == pytest.approx(0, abs=0.05)
    assert (warp_error(frozen, along, everywhere(3)) or 0) > 5  # the metric isn't won by standing still
    assert warp_error(clip, along, ~everywhere(3)) is None


@pytest.mark.parametrize("frames", [3, 40])  # more than are computed at once
def test_warp_error_counts_what_lies_in_the_region_in_both_frames(frames: int) -> None:
    clip = torch.rand(frames, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) * 2 - 1
    region = torch.rand(frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2)) < 0.7
    both = region[1:, :, :-2] & region[:-1, :, 2:]  # what is at x was at x + 2
    squares = ((clip[1:, :, :, :-2] - clip[:-1, :, :, 2:]) * 127.5).square().mean(1)[both]
    motion = moving((-2, 0), frames)
    assert warp_error(clip, motion, region) == pytest.approx(squares.mean().sqrt().item(), rel=1e-4)
    with pytest.raises(EvalError, match="motion"):
        warp_error(clip[:2], motion, region[:2])
    covered = Motion(motion.flow, ~everywhere(frames - 1))
    assert warp_error(clip, covered, region) is None


@pytest.mark.parametrize("count", [2, 40])
def test_gradient_energy_is_of_adjacent_pixels_that_both_lie_in_the_region(count: int) -> None:
    frames = torch.rand(count, 3, 6, 7, generator=torch.Generator().manual_seed(3)) * 2 - 1
    region = torch.rand(count, 6, 7, generator=torch.Generator().manual_seed(4)) < 0.6
    down = frames.diff(dim=2).square().mean(1)[region[:, 1:] & region[:, :-1]]
    right = frames.diff(dim=3).square().mean(1)[region[..., 1:] & region[..., :-1]]
    assert gradient_energy(frames, region) == pytest.approx(127.5**2 * torch.cat([down, right]).mean().item(), rel=1e-5)
    assert gradient_energy(frames, torch.zeros_like(region)) is None


def test_a_blur_wins_the_warp_error_and_shows_in_the_energy() -> None:
    noise = torch.randn(3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))
    flicker = (sliding((0, 0)) + 0.1 * noise).clamp(-1, 1)
    blurred = avg_pool2d(flicker, 5, stride=1, padding=2, count_include_pad=False)
    motion, region = still(3, HEIGHT, WIDTH), everywhere(3)
    assert (warp_error(blurred, motion, region) or 0) < (warp_error(flicker, motion, region) or 0)
    assert (gradient_energy(blurred, region) or 0) < 0.5 * (gradient_energy(flicker, region) or 0)


@pytest.mark.parametrize("frames", [3, 40])
def test_temporal_iou_is_jaccards_index_along_the_motion(frames: int) -> None:
    masks = torch.rand(frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(6)) < 0.5
    expected = [
        binary_jaccard_index(masks[i + 1, :, 3:].int(), masks[i, :, :-3].int()).item() for i in range(frames - 1)
    ]
    assert temporal_iou(masks, moving((3, 0), frames)) == pytest.approx(sum(expected) / len(expected), abs=1e-6)


def test_a_mask_that_moves_with_the_object_is_steady() -> None:
    masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
    for i in range(3):
        masks[i, 10:20, 10 + 4 * i : 22 + 4 * i] = True
    assert temporal_iou(masks, moving((4, 0))) == 1
    assert temporal_iou(masks, still(3, HEIGHT, WIDTH)) == pytest.approx(8 / 16)
    assert temporal_iou(torch.zeros_like(masks), still(3, HEIGHT, WIDTH)) is None
    assert temporal_iou(everywhere(3), still(3, HEIGHT, WIDTH)) == 1


WINDOWS = ((0, 6), (4, 10))


def test_a_jump_where_a_window_ends_raises_the_seam_ratio_and_one_elsewhere_lowers_it() -> None:
    frames = sliding((1, 0), 10)
    noisy = frames + 0.01 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))

    def ratio(first: int) -> float:
        """With a jump of brightness before frame ``first``."""
        jumped = noisy.clone()
        jumped[first:] += 0.1
        found = seam_ratio(jumped, moving((1, 0), 10), everywhere(10), WINDOWS)
        assert found is not None
        return found

    assert ratio(4) > 2 and ratio(6) > 2 and ratio(5) < 0.5 and ratio(8) < 0.5
    steady = seam_ratio(noisy, moving((1, 0), 10), everywhere(10), WINDOWS)
    assert steady == pytest.approx(1, abs=0.1)
    assert seam_ratio(noisy, moving((1, 0), 10), everywhere(10), ((0, 10),)) is None


def test_drift_is_the_change_of_the_objects_mean_colour_from_the_first_to_the_last_window() -> None:
    region = everywhere(10)
    region[:, :20] = False
    frames = torch.zeros(10, 3, HEIGHT, WIDTH)
    frames[:, :, :20] = torch.linspace(-1, 1, 10)[:, None, None, None]  # outside
    assert object_drift(frames, region, WINDOWS) == 0
    frames[6:, 0, 20:] += 0.2  # of two thirds of the last window
    assert object_drift(frames, region, WINDOWS) == pytest.approx(127.5 * 0.2 * 2 / 3 / 3**0.5, rel=1e-4)
    assert object_drift(frames, region, WINDOWS[:1]) is None
    region[4:] = False
    assert object_drift(frames, region, WINDOWS) is None
