"""Sampling's start: the inverted latents, or noise that rides with the object inside the mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tave.options import OptionError
from tave.sampling import SamplingOptions
from tave.start import fresh_start, path_of, placed_start, riding_noise

F, C, H, W = 4, 4, 12, 16


def moving(right: int = 2, down: int = 0) -> Tensor:
    """`1 f 1 h w`: a square of four cells that moves."""
    mask = torch.zeros(1, F, 1, H, W)
    for frame in range(F):
        top, left = 4 + down * frame, 4 + right * frame
        mask[0, frame, 0, top : top + 4, left : left + 4] = 1
    return mask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def start() -> Tensor:
    return torch.randn(1, F, C, H, W, generator=generator(7))


@pytest.mark.parametrize(("right", "down"), [(2, 0), (-1, 1), (0, -1), (0, 0)])
def test_the_path_is_that_of_the_region(right: int, down: int):
    assert path_of(moving(right, down)[0, :, 0]) == [(down * frame, right * frame) for frame in range(F)]


def test_a_frame_without_a_region_stays_where_the_last_one_was():
    mask = moving()[0, :, 0]
    mask[0] = mask[2] = 0
    assert path_of(mask) == [(0, 0), (0, 0), (0, 0), (0, 4)]
    assert path_of(torch.zeros(F, H, W)) == [(0, 0)] * F


@pytest.mark.parametrize(("right", "down"), [(2, 0), (-1, 1), (0, -1)])
def test_the_noise_on_the_object_is_the_same_in_every_frame(right: int, down: int):
    mask = moving(right, down)
    noise = riding_noise(torch.Size((1, F, C, H, W)), path_of(mask[0, :, 0]), generator())
    on_object = [noise[0, f][:, mask[0, f, 0] > 0] for f in range(F)]
    assert all(torch.equal(on_object[0], other) for other in on_object[1:])
    assert not torch.equal(noise[0, 0], noise[0, 1])


def test_every_frame_of_the_noise_is_white():
    shape = torch.Size((1, F, C, 96, 96))
    noise = riding_noise(shape, [(0, 0), (3, -2), (-1, 5), (0, 9)], generator())
    assert noise.shape == shape
    for frame in noise[0]:
        assert float(frame.mean()) == pytest.approx(0, abs=0.03) and float(frame.var()) == pytest.approx(1, abs=0.05)
        assert float((frame[:, :, 1:] * frame[:, :, :-1]).mean()) == pytest.approx(0, abs=0.03)


def test_outside_the_mask_and_at_share_zero_every_bit_is_kept(start: Tensor):
    mask = moving()
    fresh = fresh_start(start, mask, mask, 1.0, generator())
    inside = mask.expand_as(start) > 0
    assert torch.equal(fresh[~inside], start[~inside]) and not torch.isclose(fresh[inside], start[inside]).any()
    assert fresh_start(start, mask, mask, 0.0, generator()) is start


def test_at_share_one_nothing_of_the_old_object_is_left(start: Tensor):
    mask = moving()
    inside = mask.expand_as(start) > 0
    one, other = (fresh_start(s, mask, mask, 1.0, generator()) for s in (start, start + 3))
    assert torch.equal(one[inside], other[inside])


def test_a_part_of_fresh_noise_keeps_the_start_s_variance():
    wide = torch.randn(1, 1, 4, 256, 256, generator=generator(3))
    mask = torch.ones(1, 1, 1, 256, 256)
    mixed = fresh_start(wide, mask, mask, 0.4, generator())
    assert float(mixed.var()) == pytest.approx(1, abs=0.02)
    assert float((mixed * wide).mean()) == pytest.approx(0.6**0.5, abs=0.02)


def test_one_seed_gives_one_start(start: Tensor):
    mask = moving()
    one, same, other = (fresh_start(start, mask, mask, 0.5, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_placed_start_is_the_target_noised_inside_the_mask_and_the_source_outside(start: Tensor):
    mask = moving()
    inside = mask.expand_as(start) > 0
    placed = torch.full_like(start, 2.0)
    alpha = torch.tensor(0.64, dtype=torch.float64)
    path = [(0, 0), (1, -1), *[(2, 3)] * (start.shape[1] - 2)]
    made = placed_start(placed, start, mask, path, alpha, generator())
    assert torch.equal(made[~inside], start[~inside])
    noise = riding_noise(start.shape, path, generator())
    assert torch.allclose(made[inside], (0.8 * placed + 0.6 * noise)[inside])
    still = placed_start(placed, start, mask, path, torch.tensor(1.0, dtype=torch.float64), generator())
    assert torch.equal(still[inside], placed[inside])


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float):
    with pytest.raises(OptionError, match=r"sampler\.strength"):
        SamplingOptions(strength=strength)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(OptionError, match=r"sampler\.fresh_noise"):
        SamplingOptions(fresh_noise=1.1)
