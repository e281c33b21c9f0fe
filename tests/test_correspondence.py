"""The inter-frame field recovers a known motion, stays where none can be known, and blends what it names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tave.correspondence import Field, agreeing, blend, coarsen, correspond, scale_between, upsample

H, W = 6, 8


def moved(dy: int, dx: int, frames: int = 4) -> Tensor:
    """Features `f d h w` of a random picture that moves by whole cells, round the edges."""
    picture = torch.randn(16, H, W, generator=torch.Generator().manual_seed(0))
    return torch.stack([picture.roll((i * dy, i * dx), (1, 2)) for i in range(frames)])


def cells() -> Tensor:
    return torch.arange(H * W).view(H, W)


@pytest.mark.parametrize("dy, dx", [(0, 0), (0, 1), (2, -3), (-1, 4)])
def test_a_clip_that_moves_by_whole_cells_gives_its_motion(dy: int, dx: int) -> None:
    field = correspond(moved(dy, dx))
    for i in range(3):  # what is here comes to lie (dy, dx) further in the next frame
        assert torch.equal(field.following[i], cells().roll((-dy, -dx), (0, 1)))
        assert torch.equal(field.previous[i + 1], cells().roll((dy, dx), (0, 1)))
    assert (field.previous[0] == -1).all() and (field.following[-1] == -1).all()


def test_forward_and_backward_are_each_others_inverse_there() -> None:
    field = correspond(moved(1, 2))
    for i in range(3):
        forward, back = field.following[i].flatten(), field.previous[i + 1].flatten()
        assert torch.equal(back[forward], cells().flatten()) and torch.equal(forward[back], cells().flatten())


def test_the_scale_of_features_does_not_matter() -> None:
    features = moved(1, 1)
    scaled = features * torch.rand(4, 1, H, W, generator=torch.Generator().manual_seed(1)).add(0.1)
    assert torch.equal(correspond(features).following, correspond(scaled).following)


@pytest.mark.parametrize("features", [torch.ones(3, 5, H, W), torch.zeros(3, 5, H, W), moved(0, 0)])
def test_where_all_look_alike_cells_stay(features: Tensor) -> None:
    field = correspond(features)
    assert torch.equal(field.following[0], cells()) and torch.equal(field.previous[2], cells())


def test_other_ties_take_the_first_in_reading_order() -> None:
    features = torch.zeros(2, 2, 1, 4)
    features[0, 0] = 1  # every cell here looks at [1, 0]; there only the two middle cells do
    features[1, 0, 0], features[1, 1, 0] = torch.tensor([0.0, 1, 1, 0]), torch.tensor([1.0, 0, 0, 1])
    assert correspond(features).following[0].tolist() == [[1, 1, 2, 1]]


def test_masked_candidates_keep_to_the_mask_and_an_empty_frame_has_no_neighbours() -> None:
    mask = torch.zeros(4, H, W)
    mask[0, 1:4, 1:4] = mask[1, 1:4, 2:5] = mask[3, 0:2, 0:2] = 1  # none in frame 2
    field = correspond(moved(0, 1), mask)
    inside = mask[0] > 0
    assert torch.equal(field.following[0][inside], cells()[inside] + 1) and (field.following[0][~inside] == -1).all()
    assert torch.equal(field.previous[1][mask[1] > 0], cells()[mask[1] > 0] - 1)
    assert (field.following[1:] == -1).all() and (field.previous[2:] == -1).all()


def test_masked_ties_stay_where_they_can() -> None:
    mask = torch.zeros(2, H, W)
    mask[0, 2, 2:6] = mask[1, 2, 4:8] = 1
    field = correspond(torch.ones(2, 3, H, W), mask)
    first = int(cells()[2, 4])
    assert field.following[0, 2, 2:6].tolist() == [first, first, first, first + 1]


@pytest.mark.parametrize("dy, dx", [(0, 0), (0, 1), (2, -3)])
def test_a_clip_that_moves_by_whole_cells_finds_every_way_back(dy: int, dx: int) -> None:
    field = correspond(moved(dy, dx))
    strict = agreeing(field, 0)
    assert torch.equal(strict.previous, field.previous) and torch.equal(strict.following, field.following)


def test_what_the_next_frame_hides_has_no_neighbour_there() -> None:
    features = moved(0, 0, frames=2)
    features[1, :, 2, 3:5] = features[1, :, 5, :1]  # two cells show what stands in the corner
    field = correspond(features)
    assert (field.following >= 0)[0].all()
    kept = agreeing(field, 0)
    gone = torch.zeros(H, W, dtype=torch.bool)
    gone[2, 3:5] = True
    assert torch.equal(kept.following[0] < 0, gone) and torch.equal(kept.previous[1] < 0, gone)
    assert torch.equal(kept.following[0][~gone], cells()[~gone])


def test_the_way_back_may_miss_by_the_tolerance() -> None:
    generator = torch.Generator().manual_seed(5)
    ways = [torch.randint(-1, H * W, (4, H, W), generator=generator) for _ in range(2)]
    ways[0][0], ways[1][-1] = -1, -1
    for tolerance in (0, 1, 3):
        kept = agreeing(Field(*ways), tolerance)
        for i in range(4):
            for p in range(H * W):
                y, x = divmod(p, W)
                for there, j, back, result in (
                    (int(ways[0][i, y, x]), i - 1, ways[1], kept.previous),
                    (int(ways[1][i, y, x]), i + 1, ways[0], kept.following),
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


def test_blending_is_the_written_out_sum() -> None:
    generator = torch.Generator().manual_seed(3)
    frames, n = 4, H * W
    values = torch.randn(2, frames, 3, H, W, generator=generator, dtype=torch.float64)
    mask = (torch.rand(frames, H, W, generator=generator) > 0.4).double()
    ways = [torch.randint(-1, n, (frames, H, W), generator=generator) for _ in range(2)]
    ways[0][0], ways[1][-1] = -1, -1
    mixed = blend(values, mask, Field(*ways), (0.2, 0.5, 0.3))
    flat = values.flatten(3)
    for i in range(frames):
        for p in range(n):
            y, x = divmod(p, W)
            terms = [(0.5, flat[:, i, :, p])]
            if ways[0][i, y, x] >= 0:
                terms.append((0.2, flat[:, i - 1, :, ways[0][i, y, x]]))
            if ways[1][i, y, x] >= 0:
                terms.append((0.3, flat[:, i + 1, :, ways[1][i, y, x]]))
            total = sum(weight for weight, _ in terms)
            expected = torch.stack([weight * value for weight, value in terms]).sum(0) / total
            torch.testing.assert_close(mixed[:, i, :, y, x], expected if mask[i, y, x] else flat[:, i, :, p])
    outside = (mask == 0)[:, None].expand_as(values)
    assert torch.equal(mixed[outside], values[outside])


def test_a_blend_without_own_weight_leaves_cells_without_neighbours() -> None:
    values = torch.randn(1, 1, 2, H, W)
    assert torch.equal(blend(values, torch.ones(1, H, W), correspond(moved(0, 0, 1)), (0.5, 0.0, 0.5)), values)


def test_a_moving_clip_is_blended_along_its_motion() -> None:
    features = moved(1, 2)
    mixed = blend(features[None], torch.ones(4, H, W), correspond(features), (0.25, 0.5, 0.25))
    torch.testing.assert_close(mixed[0], features)
