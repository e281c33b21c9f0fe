"""The ideal clip scores best, the untouched source worst, and a shifted answer is found where it stands."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from eval.ideal import IdealLayers, align, ideal_psnr, ideal_ssim, ideal_ssim_aligned, object_presence, residue
from eval.regions import PSNR_CAP, psnr

HEIGHT, WIDTH = 32, 48
MY, MX = 2, 6


def picture(seed: int, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def drawn_world(occluded: bool = True) -> tuple[IdealLayers, Tensor, Tensor, Tensor, Tensor]:
    """Layers, source clip and mask, ideal clip and target mask: an 8x20 box that becomes a 6x10 one with soft sides."""
    background = picture(0)
    wide = torch.zeros(2, 4, HEIGHT + 2 * MY, WIDTH + 2 * MX)
    wide[:, :3] = torch.rand(wide[:, :3].shape, generator=torch.Generator().manual_seed(1))
    for frame, left in enumerate((14, 17)):
        wide[frame, 3, MY + 14 : MY + 20, MX + left : MX + left + 10] = 1
        wide[frame, 3, MY + 14 : MY + 20, MX + left + 10] = 0.4
    occluder = torch.zeros(2, 4, HEIGHT, WIDTH)
    if occluded:
        occluder[:, :3], occluder[:, 3, :, 20:22] = -0.5, 1
    layers = IdealLayers(background, wide, occluder)
    source, source_mask = background.clone(), torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    source_mask[:, 12:20, 10:30] = True
    source_mask &= occluder[:, 3] < 0.5
    source[:, :, 12:20, 10:30] = -1
    source = torch.lerp(source, occluder[:, :3], occluder[:, 3:])
    ideal, target_mask = layers.render()
    return layers, source, source_mask, ideal, target_mask


def slow_aligned(edited: Tensor, source_mask: Tensor, layers: IdealLayers) -> dict[tuple[int, int], float | None]:
    """Every shift written out: stack three layers over the whole picture, compare over source-or-target pixels."""
    scores = {}
    for dx in range(-MX, MX + 1):
        for dy in range(-MY, MY + 1):
            moved = torch.roll(layers.target, (dy, dx), (2, 3))[:, :, MY : MY + HEIGHT, MX : MX + WIDTH]
            frames = layers.background
            for layer in (moved, layers.occluder):
                frames = layer[:, 3:] * layer[:, :3] + (1 - layer[:, 3:]) * frames
            visible = moved[:, 3] * (1 - layers.occluder[:, 3]) >= 0.5
            scores[dx, dy] = psnr(edited, frames, source_mask | visible)
    return scores


def test_residue_is_the_share_of_given_up_pixels() -> None:
    _, source, old, ideal, new = drawn_world()
    given_up = old & ~new
    left = given_up.clone()
    left[:, :, 15:] = False
    assert residue(source, source, ideal, old, new) == 1 and residue(ideal, source, ideal, old, new) == 0
    assert residue(source, source, ideal, old, old) is None
    half_done = torch.where(left[:, None], source, ideal)
    assert residue(half_done, source, ideal, old, new) == int(left.sum()) / int(given_up.sum())


def test_an_empty_road_has_no_presence_and_a_faint_object_none() -> None:
    layers, source, _, ideal, _ = drawn_world()
    empty = torch.lerp(layers.background, layers.occluder[:, :3], layers.occluder[:, 3:])
    assert object_presence(empty, layers) == 0
    assert object_presence(ideal, layers) == object_presence(source, layers) == 1
    assert object_presence(torch.lerp(empty, ideal, 0.45), layers) == 0
    assert object_presence(torch.lerp(empty, ideal, 0.55), layers) == 1
    assert object_presence(torch.cat([ideal[:1], empty[1:]]), layers) == 0.5
    unoccluded = drawn_world(occluded=False)[0]
    assert object_presence(unoccluded.render(MX, -MY)[0], unoccluded) == 1  # wherever the object stands


@pytest.mark.parametrize("shift", [(-6, -2), (6, 2), (3, -1), (0, 1), (-4, 0)])
def test_a_shifted_answer_is_found(shift: tuple[int, int]) -> None:
    layers, _, old, ideal, new = drawn_world()
    moved, _ = layers.render(*shift)
    best = align(moved, ideal, old, new, layers)
    assert (best.psnr, best.dx, best.dy) == (PSNR_CAP, *shift)
    in_place = ideal_psnr(moved, ideal, old, new)
    assert in_place is not None and in_place < 20


@pytest.mark.parametrize("occluded", [True, False])
def test_aligned_is_the_best_of_all_shifts_written_out(occluded: bool) -> None:
    layers, _, old, ideal, new = drawn_world(occluded)
    edited = layers.render(2, 1)[0] * 0.3 + picture(2) * 0.7
    scores = slow_aligned(edited, old, layers)
    expected = max(scores, key=lambda shift: scores[shift] or 0)
    best = align(edited, ideal, old, new, layers)
    assert (best.dx, best.dy) == expected
    assert best.psnr == pytest.approx(scores[expected], abs=1e-4)


@pytest.mark.parametrize("shift", [(0, 0), (3, -1)])
def test_ssim_is_that_of_the_pixels_of_both_objects_at_the_best_shift(shift: tuple[int, int]) -> None:
    layers, source, old, ideal, new = drawn_world()
    moved, visible = layers.render(*shift)
    edited = 0.7 * moved + 0.3 * picture(2)
    best = align(edited, ideal, old, new, layers)
    assert (best.dx, best.dy) == shift
    one, other = ((clip.double() + 1) / 2 for clip in (edited, moved))
    _, image = structural_similarity_index_measure(one, other, data_range=1.0, return_full_image=True)
    expected = float(image.mean(1)[old | visible].mean())
    assert 0.1 < expected < 0.95
    assert ideal_ssim_aligned(edited, ideal, old, new, layers) == pytest.approx(expected, abs=1e-9)
    assert ideal_ssim(edited, moved, old, visible) == pytest.approx(expected, abs=1e-9)
    assert ideal_ssim_aligned(moved, ideal, old, new, layers) == pytest.approx(1)
    assert (ideal_ssim_aligned(source, ideal, old, new, layers) or 0) < expected - 0.1


def test_a_target_outside_the_picture_can_be_shifted_in() -> None:
    wide = torch.zeros(1, 4, HEIGHT + 2 * MY, WIDTH + 2 * MX)
    wide[:, 3, 10:16, :4] = 1  # in the left margin alone
    background = torch.full((1, 3, HEIGHT, WIDTH), 0.5)
    layers = IdealLayers(background, wide, torch.zeros(1, 4, HEIGHT, WIDTH))
    nothing = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    assert not layers.render()[1].any()
    moved, visible = layers.render(MX, 0)
    assert visible.sum() == 24 and visible[0, 8:14, :4].all()
    best = align(moved, background, nothing, nothing, layers)
    assert best.psnr == PSNR_CAP and best.dx > 0
