"""The pictures that the encoder sees: mattes against the truth, objects at their place and height, and bad input."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from tave.options import OptionError
from tave.reference import (
    MatteError,
    MatteWarning,
    Pose,
    ReferenceOptions,
    cut_out,
    find_site,
    frame_indices,
    matte,
    neutral,
    put,
    reference_images,
    source_frames,
)
from tave.reference.motion import agreed
from tave.reference.regions import largest_over_time

RED = (220, 30, 40)


def target(width: int = 128, height: int = 96, color: tuple[int, int, int] = RED, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """A cart (box on two wheels) before sky and ground in gradients: rgb `3 H W` and its true matte `1 H W`."""
    rows = np.linspace(0, 1, height)[:, None, None]
    sky = np.array([120, 170, 240]) * (1 - rows) + np.array([210, 225, 250]) * rows
    ground = np.array([150, 130, 100]) * (1 - rows) + np.array([190, 165, 120]) * rows
    scene = np.broadcast_to(np.where(rows < 0.55, sky, ground), (height, width, 3)).astype(np.uint8)
    picture, alpha = Image.fromarray(scene), Image.new("L", (width, height))
    w, h = width * 0.5 * scale, height * 0.4 * scale
    left, bottom = width * 0.25, height * 0.85
    for image, body, wheel in ((picture, color, (25, 25, 30)), (alpha, 255, 255)):
        pen = ImageDraw.Draw(image)
        pen.rectangle((left, bottom - h, left + w, bottom - h * 0.2), fill=body)
        for x in (left + 0.25 * w, left + 0.75 * w):
            pen.ellipse((x - h * 0.2, bottom - h * 0.4, x + h * 0.2, bottom), fill=wheel)
    rgb = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1
    return rgb, torch.from_numpy(np.asarray(alpha).copy())[None].float() / 255


def clip(count: int = 6, size: int = 64, speed: int = 6, length: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """A grey block drives over a still gradient: frames, its exact mask `f 1 H W`, and the bare background `3 H W`."""
    column, row = torch.linspace(-0.8, 0.8, size), torch.linspace(-0.5, 0.9, size)[:, None]
    background = torch.stack([plane.expand(size, size) for plane in (column / 4, row, -column)])  # nowhere red
    frames, mask = background.repeat(count, 1, 1, 1), torch.zeros(count, 1, size, size)
    for i in range(count):
        place = (slice(None), slice(30, 46), slice(4 + speed * i, 4 + speed * i + length))
        frames[i][place], mask[i][place] = 0.0, 1.0
    return frames, mask, background


def in_context(rgb: Tensor, cut: Tensor, frames: Tensor, mask: Tensor, index: int, height: float = 1.0) -> Tensor | None:
    """Frame ``index`` with the target in the place of what ``mask`` holds; None where that is nothing."""
    site = find_site(frames, mask)
    return None if site is None else put(site, rgb, cut, Pose(height), indices=[index]).pictures[0]


def iou(a: Tensor, b: Tensor) -> float:
    one, other = a > 0.5, b > 0.5
    return float((one & other).sum() / (one | other).sum())


def box(binary: Tensor) -> tuple[int, int, int, int]:
    """top, bottom, left, right of `H W` bool."""
    rows, columns = torch.nonzero(binary.any(1)), torch.nonzero(binary.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def is_red(picture: Tensor) -> Tensor:
    return (picture[0] > 0.3) & (picture[1] < -0.2) & (picture[2] < 0)


# --- matte ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(128, 96), (96, 160), (301, 200), (64, 64)])
@pytest.mark.parametrize("color", [RED, (40, 160, 70), (245, 245, 245)])
def test_the_object_is_cut_out_of_a_picture_without_alpha(size: tuple[int, int], color: tuple[int, int, int]) -> None:
    rgb, truth = target(*size, color)
    found = matte(rgb)
    assert found.shape == truth.shape
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert iou(found, truth) > 0.9


def test_cutting_out_twice_gives_the_same_bits() -> None:
    rgb, _ = target()
    assert torch.equal(matte(rgb), matte(rgb))


def test_a_thing_at_the_border_is_not_the_object() -> None:
    rgb, truth = target()
    rgb[:, 10:52, 100:] = torch.tensor([0.1, -0.6, 0.2])[:, None, None]  # a house that leaves the picture
    assert iou(matte(rgb), truth) > 0.9


@pytest.mark.parametrize("picture", [torch.zeros(3, 40, 40), torch.ones(3, 9, 200)])
def test_a_picture_without_an_object_stands_as_a_whole_and_says_so(picture: Tensor) -> None:
    assert cut_out(picture) is None
    with pytest.warns(MatteWarning, match="give a matte or a PNG"):
        assert torch.equal(matte(picture), torch.ones_like(picture[:1]))
    with pytest.warns(MatteWarning):
        assert "whole target image" in reference_images(clip()[0], picture).note


def test_a_given_matte_goes_before_alpha_and_alpha_before_search() -> None:
    rgb, truth = target()
    other = torch.zeros_like(truth)
    other[:, 5:20, 5:20] = 1
    assert torch.equal(matte(rgb, truth, other), other)
    assert torch.equal(matte(rgb, truth), truth)
    assert torch.equal(matte(rgb, truth, other, "alpha"), truth)
    assert torch.equal(matte(rgb, truth, other, "given"), other)
    assert torch.equal(matte(rgb, truth, other, "segmented"), other)
    assert torch.equal(matte(rgb, truth, other, "none"), torch.ones_like(truth))
    found = cut_out(rgb)
    assert found is not None and torch.equal(matte(rgb, truth, other, "colour"), found)


@pytest.mark.parametrize(
    ("alpha", "given", "kind", "says"),
    [
        (None, None, "alpha", r"opaque: save it as a PNG .* or set reference\.matte=auto"),
        (None, None, "given", r"no matte: give one, or set reference\.matte=auto"),
        (torch.ones(1, 96, 128), None, "segmented", r"no matte: give one, or set reference\.matte=auto"),
        (None, torch.ones(1, 10, 20), "auto", "given matte is 20x10 but the target image is 128x96: save both"),
        (None, torch.zeros(1, 96, 128), "given", "given matte is empty"),
        (torch.zeros(1, 96, 128), None, "auto", "alpha is empty"),
    ],
)
def test_mattes_that_can_not_be_used_are_refused(alpha: Tensor | None, given: Tensor | None, kind: str, says: str) -> None:
    with pytest.raises(MatteError, match=says):
        matte(target()[0], alpha, given, kind)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mode": "pasted"}, "mode='pasted'.*as_is, neutral, in_context, joint"),
        ({"frame": "last"}, "frame='last'.*middle"),
        ({"matte": "sam"}, "matte='sam'.*auto"),
        ({"height_scale": 0.0}, "height_scale=0.0"),
        ({"heading": "left"}, "heading='left'"),
        ({"feather": -1.0}, "feather=-1.0"),
    ],
)
def test_impossible_options_name_the_key(wrong: dict, says: str) -> None:
    with pytest.raises(OptionError, match=f"reference.{says}"):
        ReferenceOptions(**wrong)


# --- neutral ----------------------------------------------------------------------------------------------------


def test_neutral_shows_the_object_in_a_grey_square_with_a_margin() -> None:
    rgb, truth = target()
    picture = neutral(rgb, truth, margin=0.1)
    top, bottom, left, right = box(truth[0] > 0.5)
    side = right - left + 2 * 7  # 65 pixels wide, a tenth rounded up at either end
    assert picture.shape == (3, side, side)
    corners = picture[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert bool((corners == 0).all())
    above = (side - (bottom - top)) // 2
    assert abs(box((picture != 0).any(0))[0] - above) <= 1
    assert float((picture != 0).any(0).sum()) == float(truth.sum())


def test_neutral_reaches_beyond_the_picture_where_the_object_does() -> None:
    rgb = torch.ones(3, 20, 60)
    picture = neutral(rgb, torch.ones(1, 20, 60), margin=0)
    assert picture.shape == (3, 60, 60)
    assert box((picture != 0).any(0)) == (20, 40, 0, 60)


# --- in context -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height_scale", [0.5, 1.0, 1.5])
def test_the_object_stands_on_the_boxs_line_at_its_height_and_centre(height_scale: float) -> None:
    rgb, truth = target()
    frames, mask, background = clip()
    for index in (0, 3):
        picture = in_context(rgb, truth, frames, mask, index, height_scale)
        assert picture is not None
        changed = (picture - background).abs().amax(0) > 0.08
        top, bottom, left, right = box(changed)
        assert abs(bottom - 46) <= 1
        assert abs(bottom - top - 16 * height_scale) <= 1
        if height_scale == 0.5:  # no wider than the block: not cut off at the frame's edge
            assert abs((left + right) / 2 - (14 + 6 * index)) <= 1


def test_the_target_does_not_pulse_with_the_boxes() -> None:
    rgb, truth = target()
    frames, mask, background = clip()
    mask[2, :, 26:30] = mask[2, :, 30:34]  # one frame's box is four rows taller
    for index in range(5):
        picture = in_context(rgb, truth, frames, mask, index)
        assert picture is not None
        top, bottom, _, _ = box((picture - background).abs().amax(0) > 0.08)
        assert abs(bottom - top - 16) <= 1


def test_the_source_object_is_gone_and_the_background_is_the_clips_own() -> None:
    rgb, truth = target()
    frames, mask, background = clip(count=8)  # drives further than its length: every pixel is seen bare once
    picture = in_context(rgb, truth, frames, mask, 4, 0.3)
    assert picture is not None
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[40:47] = False  # where the small target stands
    assert torch.equal(picture[:, outside], background[:, outside])


def test_what_is_never_seen_bare_is_inpainted() -> None:
    rgb, truth = target()
    frames, mask, background = clip(count=4, speed=0)
    picture = in_context(rgb, truth, frames, mask, 1, 0.3)
    assert picture is not None
    hole = picture[:, 31:38, 6:22] - background[:, 31:38, 6:22]
    assert float(hole.abs().max()) < 0.25  # of 2; the block itself is off by up to 0.9


def test_specks_elsewhere_and_holes_do_not_move_the_box() -> None:
    frames, mask, _ = clip()
    clean = find_site(frames, mask)
    mask[:, :, 35:40, :] *= torch.where(torch.arange(64) % 7 == 0, 0.0, 1.0)  # windows that the mask misses
    mask[2, :, 2:5, 50:60] = 1
    again = find_site(frames, mask)
    assert clean is not None and again is not None
    for before, after in zip(clean.stance, again.stance, strict=True):
        assert np.allclose(before, after, atol=0.5)  # pixels


def test_the_largest_piece_is_counted_over_time() -> None:
    masked = np.zeros((5, 20, 20), dtype=bool)
    masked[:, 2:5, 2:5] = True  # 9 pixels for five frames
    masked[1, 10:16, 10:16] = True  # 36 for one
    track = largest_over_time(masked)
    assert track[:, 2:5, 2:5].all()
    assert track.sum() == 45


def test_a_torn_track_and_a_missed_frame_still_have_a_place() -> None:
    rgb, truth = target()
    frames, mask, _ = clip(count=3, speed=22)  # faster than its own length
    for index, left in enumerate((4, 26, 48)):
        picture = in_context(rgb, truth, frames, mask, index, 0.5)
        assert picture is not None
        columns = torch.nonzero(is_red(picture).any(0))
        assert left <= int(columns.min()) <= int(columns.max()) < left + 20
    mask[1] = 0
    assert in_context(rgb, truth, frames, mask, 1) is not None


def test_the_targets_own_background_does_not_bleed_into_its_edge() -> None:
    _, truth = target()
    rgb = torch.where(truth > 0.5, torch.tensor([1.0, -1, -1]).view(3, 1, 1), torch.tensor([-1.0, 1, -1]).view(3, 1, 1))
    frames, mask = torch.full((2, 3, 64, 64), -1.0), clip(2)[1]
    picture = in_context(rgb, truth, frames, mask, 0, 2.0)
    assert picture is not None
    assert float(picture[1].max()) < -0.99  # no green on black


def test_the_object_keeps_its_heading() -> None:
    rgb, truth = target()
    truth[:, :70, :64] = 0  # the left half is low
    frames, mask, background = clip()
    picture = in_context(rgb, truth, frames, mask, 2, 1.0)
    assert picture is not None
    upper = ((picture - background).abs().amax(0) > 0.08)[31:36].any(0)
    middle = 4 + 12 + 10
    assert int(upper[middle:].sum()) > 2 * int(upper[:middle].sum())


def test_mirrored_it_looks_the_other_way_and_stands_where_it_stood() -> None:
    rgb, truth = target()
    truth[:, :70, :64] = 0  # the left half is low
    frames, mask, _ = clip()
    site = find_site(frames, mask)
    assert site is not None
    plain, turned = (put(site, rgb, truth, Pose(1.0, mirrored)) for mirrored in (False, True))
    for frame in range(len(frames)):
        rows, columns = (torch.nonzero(turned.alpha[frame, 0] > 0.5)[:, axis] for axis in (0, 1))
        as_shown = torch.nonzero(plain.alpha[frame, 0] > 0.5)
        assert abs(int(rows.max()) - int(as_shown[:, 0].max())) <= 1
        assert abs(int(columns.min() + columns.max()) - int(as_shown[:, 1].min() + as_shown[:, 1].max())) <= 2
    upper = (turned.alpha[2, 0] > 0.5)[31:36].any(0)
    middle = 4 + 12 + 10
    assert int(upper[:middle].sum()) > 2 * int(upper[middle:].sum())


def test_the_alpha_is_where_the_picture_differs_from_the_bare_background() -> None:
    rgb, truth = target()
    frames, mask, background = clip(count=8)
    site = find_site(frames, mask)
    assert site is not None
    placed = put(site, rgb, truth, Pose(0.5))
    assert placed.pictures.shape == frames.shape and placed.alpha.shape == mask.shape
    for picture, alpha in zip(placed.pictures, placed.alpha, strict=True):
        assert ((picture - background).abs().amax(0) > 0.08)[alpha[0] > 0.5].all()
        assert torch.equal(picture[:, alpha[0] == 0], background[:, alpha[0] == 0])


def test_an_object_that_grows_has_a_target_that_grows() -> None:
    frames = torch.zeros(6, 3, 64, 64)
    mask = torch.zeros(6, 1, 64, 64)
    for index in range(6):
        mask[index, :, 50 - 10 - 4 * index : 50, 32 - 5 - 2 * index : 32 + 5 + 2 * index] = 1
    mask[3, :, 20:26, 20:40] = 1  # one frame's box is too tall
    site = find_site(frames, mask)
    assert site is not None
    assert np.allclose(site.stance.heights, [10, 14, 18, 22, 26, 30], atol=0.5)
    assert np.allclose(site.stance.bottoms, 50, atol=1) and np.allclose(site.stance.middles, 32, atol=0.5)


@pytest.mark.parametrize("speed", [-6, 6])
def test_an_object_that_drives_out_of_the_frame_has_its_middle_beyond_what_is_seen(speed: int) -> None:
    frames, mask = torch.zeros(8, 3, 64, 64), torch.zeros(8, 1, 64, 64)
    first = 20 if speed < 0 else 24
    for index in range(8):
        left = first + speed * index
        mask[index, :, 30:46, max(left, 0) : max(0, min(left + 20, 64))] = 1
    seen = mask.any(-1).any(-1)[:, 0]
    site = find_site(frames, mask)
    assert site is not None
    middles = first + 10 + speed * np.arange(8)
    assert np.allclose(site.stance.middles[seen.numpy()], middles[seen.numpy()], atol=0.5)


def test_an_object_that_leaves_below_stands_below() -> None:
    frames, mask = torch.zeros(6, 3, 64, 64), torch.zeros(6, 1, 64, 64)
    for index in range(6):
        mask[index, :, 30 + 6 * index : 46 + 6 * index, 20:40] = 1
    site = find_site(frames, mask)
    assert (
        site is not None
        and np.allclose(site.stance.bottoms, 46 + 6 * np.arange(6), atol=0.5)
        and np.allclose(site.stance.heights, 16)
    )


def test_where_the_object_is_not_seen_the_target_is_not_put() -> None:
    rgb, truth = target()
    frames, mask, background = clip(count=8, speed=3)
    frames[5:], mask[5:] = background, 0
    mask[6, :, 2:4, 2:4] = 1  # a speck, after it has gone
    site = find_site(frames, mask)
    assert site is not None and site.seen.tolist() == [True] * 5 + [False] * 3
    assert np.allclose(site.stance.heights[:5], 16, atol=0.3) and np.allclose(
        site.stance.middles[:5], 14 + 3 * np.arange(5), atol=0.5
    )
    placed = put(site, rgb, truth)
    assert (placed.alpha[:5].amax((1, 2, 3)) > 0.9).all() and placed.alpha[5:].max() == 0
    assert torch.equal(placed.pictures[5:], site.frames[5:])
    asked = put(site, rgb, truth, indices=[5])  # to be shown to the encoder it has to stand somewhere
    assert asked.alpha.max() > 0.9


def test_at_the_frames_edge_the_target_does_not_fade() -> None:
    rgb, truth = target()
    frames, mask = torch.full((3, 3, 64, 64), -1.0), torch.zeros(3, 1, 64, 64)
    mask[:, :, 30:46, 52:] = 1
    site = find_site(frames, mask)
    assert site is not None
    placed = put(site, torch.ones_like(rgb), torch.ones_like(truth), feather=0.1)
    assert placed.alpha[1, 0, 34:40, -1].min() > 0.99 and placed.pictures[1, :, 34:40, -1].min() > 0.99


def driving(count: int, speed: float, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """A picture with texture drives over a still one, by parts of a pixel, growing ``scale``-fold; and its exact mask."""
    generator = torch.Generator().manual_seed(3)
    ground, paint = (
        interpolate(torch.rand(1, 3, side, side, generator=generator), size, mode="bicubic").numpy()[0].transpose(1, 2, 0)
        for side, size in ((16, (64, 96)), (8, (20, 30)))
    )
    frames, masks = [], []
    for index in range(count):
        size = scale ** (index / max(1, count - 1))
        where = np.array([[size, 0, 8 + speed * index], [0, size, 50 - 20 * size]])
        layer = cv2.warpAffine(np.dstack([paint, np.ones((20, 30), np.float32)]), where, (96, 64))
        frames.append(layer[..., 3:] * layer[..., :3] + (1 - layer[..., 3:]) * ground * 0.5)
        masks.append(layer[..., 3] > 0.5)
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) * 2 - 1, torch.from_numpy(np.stack(masks))[:, None].float()


@pytest.mark.parametrize("speed", [0.0, 2.3, 3.7])
def test_the_object_s_own_pixels_tell_how_it_moves_whatever_its_mask_does(speed: float) -> None:
    frames, mask = driving(10, speed)
    exact = find_site(frames, mask)
    for index in range(10):  # the mask gains a mark on the road in one frame, and loses a corner in another
        right = int(mask[index, 0].any(0).nonzero().max())
        mask[index, :, 44:48, right : right + 15 * (index % 3 == 1)] = 1
        mask[index, :, 30:38, right - 8 * (index % 3 == 2) : right + 1] = 0
    site = find_site(frames, mask)
    assert exact is not None and site is not None
    path = speed * np.arange(10)
    assert np.abs(site.path[:, 0] - path).max() < 0.15 and np.abs(site.path[:, 1]).max() < 0.15
    assert np.abs(np.diff(site.stance.middles) - speed).max() < 0.1
    assert iou(site.region, exact.region) > 0.95 > 0.93 > iou(mask, exact.region)


def test_one_that_comes_nearer_is_seen_to_grow() -> None:
    frames, mask = driving(8, 0.5, scale=1.4)
    site = find_site(frames, mask)
    assert site is not None
    assert np.allclose(site.stance.heights / site.stance.heights[0], 1.4 ** (np.arange(8) / 7), rtol=0.04)
    assert iou(site.region, mask) > 0.93


def test_a_tyre_that_is_as_dark_as_the_road_is_the_object_s() -> None:
    frames, mask = driving(10, 3.0)
    whole = mask.clone()
    mask[:, :, 46:] = 0  # what its colours didn't tell
    site = find_site(frames, mask)
    assert site is not None
    assert iou(site.region, whole) > 0.93 > iou(mask, whole) and np.abs(site.stance.bottoms - 50).max() < 0.6


def test_what_a_lamp_parts_is_one_object() -> None:
    frames, mask = driving(10, 3.0)
    whole = mask.clone()
    frames[..., 40:42], mask[..., 40:42] = -1.0, 0.0
    site = find_site(frames, mask)
    assert site is not None
    assert np.abs(site.path[:, 0] - 3.0 * np.arange(10)).max() < 0.5
    assert iou(site.region[..., 38:44], whole[..., 38:44]) > 0.8


def test_a_frame_that_looks_like_no_other_keeps_what_it_has() -> None:
    masked = np.zeros((5, 40, 40), dtype=bool)
    masked[:, 10:20, 10:20] = True
    masked[2] = False
    masked[2, 25:38, 22:38] = True
    still = np.full((5, 2), 20.0)
    found = agreed(masked, still, np.ones(5), np.ones(5, dtype=bool))
    assert np.array_equal(found, masked)


def test_where_nothing_can_be_told_by_pixels_the_boxes_tell() -> None:
    _, mask = driving(10, 3.0)
    site = find_site(torch.zeros(10, 3, 64, 96), mask)
    assert site is not None and np.abs(site.path[:, 0] - 3.0 * np.arange(10)).max() < 0.6


def test_beyond_what_is_seen_it_goes_on_as_it_went() -> None:
    frames, mask = driving(8, 4.0)
    mask[5:] = 0
    site = find_site(frames, mask)
    assert site is not None and np.allclose(np.diff(site.stance.middles), 4, atol=0.2)


def test_an_empty_mask_gives_none_and_a_wrong_one_is_refused() -> None:
    frames, mask, _ = clip()
    assert find_site(frames, torch.zeros_like(mask)) is None
    with pytest.raises(MatteError, match="must agree in frames and size"):
        find_site(frames, mask[:3])


# --- both passes ------------------------------------------------------------------------------------------------


def test_two_passes_from_a_picture_without_alpha() -> None:
    rgb, _ = target()
    frames, mask, _ = clip()
    first = reference_images(frames, rgb)
    assert (first.mode, first.note) == ("neutral", "")
    assert first.matte is not None
    assert torch.equal(first.source, frames[3:4])
    second = reference_images(frames, rgb, given=first.matte, site=find_site(frames, mask))
    assert second.mode == "in_context"
    assert second.target is not None and second.target.shape == second.source.shape == (1, 3, 64, 64)
    again = reference_images(frames, rgb, site=find_site(frames, mask))  # without the first pass's matte: the same, only slower
    assert again.target is not None and torch.equal(second.target, again.target)
    assert int(is_red(second.target[0]).sum()) > 100


def test_joint_shows_the_place_in_the_second_pass() -> None:
    rgb, _ = target()
    frames, mask, _ = clip()
    joint = ReferenceOptions(mode="joint", frame="per_frame")
    first = reference_images(frames, rgb, options=joint)
    second = reference_images(frames, rgb, options=joint, given=first.matte, site=find_site(frames, mask))
    placed = reference_images(
        frames, rgb, options=ReferenceOptions(frame="per_frame"), given=first.matte, site=find_site(frames, mask)
    )
    assert (first.mode, second.mode) == ("neutral", "joint")
    assert second.target is not None and placed.target is not None and torch.equal(second.target, placed.target)


def test_joint_shows_the_photograph_or_the_object_on_grey_beside_the_place() -> None:
    rgb, alpha = target()
    frames, mask, _ = clip()
    for near, view in (("as_is", rgb), ("neutral", neutral(rgb, alpha))):
        joint = ReferenceOptions(mode="joint", near=near)
        first = reference_images(frames, rgb, alpha, joint)
        second = reference_images(frames, rgb, alpha, joint, site=find_site(frames, mask))
        assert first.near is None and len(first.views) == 1
        assert second.target is not None and torch.equal(second.views[0], second.target)
        assert torch.equal(second.views[1][0], view)
    alone = reference_images(frames, rgb, alpha, ReferenceOptions(mode="in_context"), site=find_site(frames, mask))
    assert alone.near is None


def test_without_a_place_the_reference_stays_neutral() -> None:
    rgb, truth = target()
    frames, mask, _ = clip()
    assert find_site(frames, torch.zeros_like(mask)) is None
    reference = reference_images(frames, rgb, truth)
    assert reference.mode == "neutral"
    assert reference.target is not None and torch.equal(reference.target[0], neutral(rgb, truth))


def test_per_frame_follows_the_object() -> None:
    rgb, truth = target()
    frames, mask, _ = clip()
    reference = reference_images(
        frames, rgb, truth, ReferenceOptions(frame="per_frame", height_scale=0.5), site=find_site(frames, mask)
    )
    assert reference.target is not None and reference.source.shape == reference.target.shape == (6, 3, 64, 64)
    middles = [torch.nonzero(is_red(picture))[:, 1].float().mean() for picture in reference.target]
    steps = torch.stack(middles).diff()
    assert float((steps - 6).abs().max()) < 0.5


def test_as_is_and_neutral_ignore_the_place() -> None:
    rgb, truth = target()
    frames, mask, _ = clip()
    as_is = reference_images(frames, rgb, truth, ReferenceOptions(mode="as_is"), site=find_site(frames, mask))
    assert as_is.matte is None
    assert as_is.target is not None and torch.equal(as_is.target[0], rgb)
    plain = reference_images(frames, rgb, truth, ReferenceOptions(mode="neutral"), site=find_site(frames, mask))
    assert plain.target is not None and torch.equal(plain.target[0], neutral(rgb, truth))


def test_nothing_that_came_in_is_changed() -> None:
    rgb, truth = target()
    frames, mask, _ = clip()
    before = [tensor.clone() for tensor in (rgb, truth, frames, mask)]
    reference_images(frames, rgb, truth, site=find_site(frames, mask))
    assert all(torch.equal(a, b) for a, b in zip(before, (rgb, truth, frames, mask), strict=True))


def test_which_frames_stand_for_the_source() -> None:
    frames = clip(count=5)[0]
    assert frame_indices(5) == [2]
    assert frame_indices(8) == [4]
    assert frame_indices(1, "middle") == [0]
    assert torch.equal(source_frames(frames, "first"), frames[:1])
    assert torch.equal(source_frames(frames, "per_frame"), frames)
    with pytest.raises(OptionError, match="first, per_frame"):
        frame_indices(5, "last")
