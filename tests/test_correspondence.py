"""The inter-frame field recovers a known motion, stays where none can be known, and blends what it points at."""

from __future__ import annotations

import pytest
import torch
from fakes import draw
from torch import Tensor

from tave.correspondence import Field, agreeing, blend, coarsen, correspond, scale_between, upsample

H, W = 6, 8
CELLS = torch.arange(H * W).view(H, W)


def moved(dy: int, dx: int, frames: int = 4) -> Tensor:
    """Features `f d h w` of a random picture that moves by whole cells, round the edges."""
    picture = draw(16, H, W, dtype=torch.float32)
    return torch.stack([picture.roll((i * dy, i * dx), (1, 2)) for i in range(frames)])


def random_field(seed: int) -> Field:
    generator = torch.Generator().manual_seed(seed)
    previous, following = (torch.randint(-1, H * W, (4, H, W), generator=generator) for _ in range(2))
    previous[0], following[-1] = -1, -1
    return Field(previous, following)


@pytest.mark.parametrize("dy, dx", [(0, 0), (0, 1), (2, -3), (-1, 4)])
def test_a_clip_that_moves_by_whole_cells_gives_its_motion_there_and_back(dy: int, dx: int) -> None:
    features = moved(dy, dx)
    field = correspond(features * draw(4, 1, H, W, seed=1, dtype=torch.float32).abs().add(0.1))  # only angles count
    for i in range(3):
        assert torch.equal(field.following[i], CELLS.roll((-dy, -dx), (0, 1)))
        assert torch.equal(field.previous[i + 1], CELLS.roll((dy, dx), (0, 1)))
        forward, back = field.following[i].flatten(), field.previous[i + 1].flatten()
        assert torch.equal(back[forward], CELLS.flatten()) and torch.equal(forward[back], CELLS.flatten())
    assert (field.previous[0] == -1).all() and (field.following[-1] == -1).all()
    strict = agreeing(field, 0)
    assert torch.equal(strict.previous, field.previous) and torch.equal(strict.following, field.following)
    mixed = blend(features[None], torch.ones(4, H, W), field, (0.25, 0.5, 0.25))
    torch.testing.assert_close(mixed[0], features)  # blended along its motion


@pytest.mark.parametrize("features", [torch.ones(3, 5, H, W), torch.zeros(3, 5, H, W), moved(0, 0)])
def test_where_all_look_alike_cells_stay(features: Tensor) -> None:
    field = correspond(features)
    assert torch.equal(field.following[0], CELLS) and torch.equal(field.previous[2], CELLS)


def test_other_ties_take_the_first_in_reading_order() -> None:
    features = torch.zeros(2, 2, 1, 4)
    features[0, 0] = 1  # every cell here looks like the two middle cells there
    features[1, 0, 0], features[1, 1, 0] = torch.tensor([0.0, 1, 1, 0]), torch.tensor([1.0, 0, 0, 1])
    assert correspond(features).following[0].tolist() == [[1, 1, 2, 1]]
    mask = torch.zeros(2, H, W)
    mask[0, 2, 2:6] = mask[1, 2, 4:8] = 1
    first = int(CELLS[2, 4])
    assert correspond(torch.ones(2, 3, H, W), mask).following[0, 2, 2:6].tolist() == [first, first, first, first + 1]


def test_masked_candidates_are_in_the_mask_and_an_empty_frame_has_no_neighbours() -> None:
    mask = torch.zeros(4, H, W)
    mask[0, 1:4, 1:4] = mask[1, 1:4, 2:5] = mask[3, 0:2, 0:2] = 1  # none in frame 2
    field, inside = correspond(moved(0, 1), mask), mask > 0
    assert torch.equal(field.following[0][inside[0]], CELLS[inside[0]] + 1)
    assert torch.equal(field.previous[1][inside[1]], CELLS[inside[1]] - 1)
    assert (field.following[0][~inside[0]] == -1).all()
    assert (field.following[1:] == -1).all() and (field.previous[2:] == -1).all()


def test_what_the_next_frame_occludes_has_no_neighbour_there() -> None:
    features = moved(0, 0, frames=2)
    features[1, :, 2, 3:5] = features[1, :, 5, :1]  # two cells show the corner's content
    field = correspond(features)
    assert (field.following >= 0)[0].all()
    kept = agreeing(field, 0)
    gone = torch.zeros(H, W, dtype=torch.bool)
    gone[2, 3:5] = True
    assert torch.equal(kept.following[0] < 0, gone) and torch.equal(kept.previous[1] < 0, gone)
    assert torch.equal(kept.following[0][~gone], CELLS[~gone])


@pytest.mark.parametrize("tolerance", [0, 1, 3])
def test_the_return_may_miss_by_the_tolerance(tolerance: int) -> None:
    field = random_field(5)
    kept = agreeing(field, tolerance)
    for i in range(4):
        for p in range(H * W):
            y, x = divmod(p, W)
            for there, j, back, result in (
                (int(field.previous[i, y, x]), i - 1, field.following, kept.previous),
                (int(field.following[i, y, x]), i + 1, field.previous, kept.following),
            ):
                home = int(back[j].flatten()[there]) if there >= 0 else -1
                near = home >= 0 and max(abs(home // W - y), abs(home % W - x)) <= tolerance
                assert int(result[i, y, x]) == (there if near else -1)


@pytest.mark.parametrize("h, w", [(H, W), (2 * H, 2 * W), (4 * H, 2 * W), (2 * H - 1, 4 * W - 3)])
def test_upsampling_keeps_the_offset_within_the_coarse_cell(h: int, w: int) -> None:
    grid = torch.arange(h * w).view(h, w)
    still = upsample(correspond(moved(0, 0)), h, w)
    assert torch.equal(still.following[0], grid) and (still.following[-1] == -1).all()
    by_one = upsample(correspond(moved(0, 1)), h, w).following[0]
    step = scale_between(w, W)
    assert torch.equal(by_one[:, : w - 2 * step], grid[:, : w - 2 * step] + step)
    assert by_one.max() < h * w


def test_grids_follow_the_networks_halving() -> None:
    assert [scale_between(25, n) for n in (25, 13, 7, 4)] == [1, 2, 4, 8]
    with pytest.raises(ValueError, match="up block"):
        scale_between(24, 10)
    mask = torch.zeros(1, 5, 5)
    mask[0, 4, 1] = 1
    assert coarsen(mask, 3, 3)[0].tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_blending_is_the_weighted_sum() -> None:
    values, field = draw(2, 4, 3, H, W, seed=3), random_field(3)
    mask = (draw(4, H, W, seed=4) > -0.3).double()
    mixed, flat = blend(values, mask, field, (0.2, 0.5, 0.3)), values.flatten(3)
    for i in range(4):
        for p in range(H * W):
            y, x = divmod(p, W)
            terms = [(0.5, flat[:, i, :, p])]
            if field.previous[i, y, x] >= 0:
                terms.append((0.2, flat[:, i - 1, :, field.previous[i, y, x]]))
            if field.following[i, y, x] >= 0:
                terms.append((0.3, flat[:, i + 1, :, field.following[i, y, x]]))
            total = sum(weight for weight, _ in terms)
            expected = torch.stack([weight * value for weight, value in terms]).sum(0) / total
            torch.testing.assert_close(mixed[:, i, :, y, x], expected if mask[i, y, x] else flat[:, i, :, p])
    outside = (mask == 0)[:, None].expand_as(values)
    assert torch.equal(mixed[outside], values[outside])
    alone = draw(1, 1, 2, H, W)  # no neighbours, and no weight of its own
    assert torch.equal(blend(alone, torch.ones(1, H, W), correspond(moved(0, 0, 1)), (0.5, 0.0, 0.5)), alone)
