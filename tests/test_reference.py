"""The pictures that the encoder sees: mattes against the truth, objects at their place and height."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tave.config import ReferenceOptions
from tave.reference import MatteError, Place, TargetImage, cut_out, find_place, first_pass, matte, neutral, put
from tave.reference.views import frame_indices, second_pass, source_frames
from tave.regions import box_of, grown

RED = (220, 30, 40)


def target(width: int = 128, height: int = 96, color: tuple[int, int, int] = RED) -> tuple[Tensor, Tensor]:
    """A cart (box on two wheels) before sky and ground in gradients: rgb `3 H W` and its true matte `1 H W`."""
    rows = np.linspace(0, 1, height)[:, None, None]
    sky = np.array([120, 170, 240]) * (1 - rows) + np.array([210, 225, 250]) * rows
    ground = np.array([150, 130, 100]) * (1 - rows) + np.array([190, 165, 120]) * rows
    scene = np.broadcast_to(np.where(rows < 0.55, sky, ground), (height, width, 3)).astype(np.uint8)
    picture, alpha = Image.fromarray(scene), Image.new("L", (width, height))
    w, h, left, bottom = width * 0.5, height * 0.4, width * 0.25, height * 0.85
    for image, body, wheel in ((picture, color, (25, 25, 30)), (alpha, 255, 255)):
        pen = ImageDraw.Draw(image)
        pen.rectangle((left, bottom - h, left + w, bottom - h * 0.2), fill=body)
        for x in (left + 0.25 * w, left + 0.75 * w):
            pen.ellipse((x - h * 0.2, bottom - h * 0.4, x + h * 0.2, bottom), fill=wheel)
    rgb = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1
    return rgb, torch.from_numpy(np.asarray(alpha).copy())[None].float() / 255


RGB, TRUTH = target()
BOX = (30, 46, 20)  # top, bottom and width of the source object


def clip(count: int = 6, size: int = 64, speed: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """A grey block moves over a still gradient: frames, its exact mask `f 1 H W`, and the background `3 H W`."""
    column, row = torch.linspace(-0.8, 0.8, size), torch.linspace(-0.5, 0.9, size)[:, None]
    background = torch.stack([plane.expand(size, size) for plane in (column / 4, row, -column)])
    frames, mask = background.repeat(count, 1, 1, 1), torch.zeros(count, 1, size, size)
    for i in range(count):
        block = (slice(None), slice(*BOX[:2]), slice(4 + speed * i, 4 + speed * i + BOX[2]))
        frames[i][block], mask[i][block] = 0.0, 1.0
    return frames, mask, background


def empty_place(*boxes: tuple[float, float, float, float]) -> Place:
    """Black frames of 64 px with the boxes given."""
    return Place(torch.full((len(boxes), 3, 64, 64), -1.0), torch.tensor(boxes, dtype=torch.float64))


# ---- matte -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(128, 96), (96, 160), (301, 200), (64, 64)])
@pytest.mark.parametrize("color", [RED, (40, 160, 70), (245, 245, 245)])
def test_the_object_is_cut_out_of_a_picture_without_alpha(size: tuple[int, int], color: tuple[int, int, int]) -> None:
    rgb, truth = target(*size, color)
    rgb[:, 10 : size[1] // 2, -6:] = torch.tensor([0.1, -0.6, 0.2])[:, None, None]  # something that leaves the picture
    found = matte(rgb)
    assert found.shape == truth.shape and found.dtype == torch.float32 and 0 <= found.min() <= found.max() <= 1
    one, other = found > 0.5, truth > 0.5
    assert float((one & other).sum() / (one | other).sum()) > 0.9
    assert torch.equal(matte(rgb), found)  # deterministic


@pytest.mark.parametrize("picture", [torch.zeros(3, 40, 40), torch.ones(3, 9, 200)])
def test_a_picture_without_an_object_is_used_whole_and_noted(picture: Tensor) -> None:
    assert cut_out(picture) is None and torch.equal(matte(picture), torch.ones_like(picture[:1]))
    assert "whole picture" in first_pass(TargetImage(picture), ReferenceOptions(mode="neutral")).note
    assert first_pass(TargetImage(RGB), ReferenceOptions(mode="neutral")).note == ""


def test_a_given_matte_goes_before_alpha_and_alpha_before_colours() -> None:
    other = torch.zeros_like(TRUTH)
    other[:, 5:20, 5:20] = 1
    assert torch.equal(matte(RGB, TRUTH, other), other) and torch.equal(matte(RGB, TRUTH), TRUTH)
    expected = {"alpha": TRUTH, "given": other, "segmented": other, "none": torch.ones_like(TRUTH)}
    for kind, cut in (expected | {"colour": cut_out(RGB)}).items():
        assert cut is not None and torch.equal(matte(RGB, TRUTH, other, kind), cut), kind


@pytest.mark.parametrize(
    ("alpha", "given", "kind", "message"),
    [
        (None, None, "alpha", r"opaque: save it as a PNG .* or set reference\.matte=auto"),
        (None, None, "given", r"no matte: give one, or set reference\.matte=auto"),
        (torch.ones(1, 96, 128), None, "segmented", r"no matte: give one, or set reference\.matte=auto"),
        (None, torch.ones(1, 10, 20), "auto", "given matte is 20x10 but the target image is 128x96: save both"),
        (None, torch.zeros(1, 96, 128), "given", "given matte is empty"),
        (torch.zeros(1, 96, 128), None, "auto", "alpha is empty"),
    ],
)
def test_unusable_mattes_are_refused(alpha: Tensor | None, given: Tensor | None, kind: str, message: str) -> None:
    with pytest.raises(MatteError, match=message):
        matte(RGB, alpha, given, kind)


# ---- on grey ---------------------------------------------------------------------------------------------------------


def test_neutral_shows_the_object_in_a_grey_square_with_a_margin() -> None:
    picture = neutral(RGB, TRUTH)
    box = box_of(TRUTH[0].numpy() > 0.5)
    side = box.right - box.left + 2 * 7  # 65 px wide, a tenth rounded up at either end
    assert picture.shape == (3, side, side) and not picture[:, [0, 0, -1, -1], [0, -1, 0, -1]].any()
    shown = (picture != 0).any(0)
    assert abs(box_of(shown.numpy()).top - (side - (box.bottom - box.top)) // 2) <= 1 and shown.sum() == TRUTH.sum()
    beyond = neutral(torch.ones(3, 20, 60), torch.ones(1, 20, 60))  # the square is higher than the picture
    assert beyond.shape == (3, 72, 72) and tuple(box_of((beyond != 0).any(0).numpy())) == (26, 46, 6, 66)


# ---- in the source frame ---------------------------------------------------------------------------------------------


def test_boxes_follow_the_object_and_one_frames_error_is_smoothed() -> None:
    frames, mask, _ = clip()
    place = find_place(frames, mask)
    assert place is not None
    exact = [(*BOX[:2], 4 + 6 * i, 24 + 6 * i) for i in range(6)]
    assert place.boxes.tolist() == [list(map(float, box)) for box in exact]
    mask[2, :, 20:30] = mask[2, :, 30:40]  # one frame's box is ten rows taller
    mask[4] = 0  # and one frame has none: it takes the nearest
    smoothed = find_place(frames, mask)
    assert smoothed is not None and torch.equal(smoothed.boxes[:, :2], place.boxes[:, :2])
    assert float((smoothed.boxes - place.boxes).abs().max()) <= 6
    assert find_place(frames, torch.zeros_like(mask)) is None


def test_a_pair_of_objects_is_one_place() -> None:
    frames, mask = torch.zeros(3, 3, 64, 64), torch.zeros(3, 1, 64, 64)
    mask[:, :, 30:40, 8:20], mask[:, :, 32:44, 36:50] = 1, 1
    place = find_place(frames, mask)
    assert place is not None and place.boxes.tolist() == 3 * [[30, 44, 8, 50]]


@pytest.mark.parametrize("pan", [0, 3])
def test_the_object_is_inpainted_and_the_rest_of_its_frame_stays(pan: int) -> None:
    """Within its own frame, so that a moving camera does not matter."""
    frames, mask, background = clip(size=96)
    frames, mask, bare = (
        torch.stack([each.roll(pan * i, -1) for i, each in enumerate(part)])
        for part in (frames, mask, background.repeat(6, 1, 1, 1))
    )
    place = find_place(frames, mask)
    assert place is not None
    hole = torch.from_numpy(grown(mask[:, 0].numpy() > 0, 2))[:, None].expand_as(frames)
    torch.testing.assert_close(place.frames[~hole], frames[~hole], rtol=0, atol=0.5 / 127.5)
    inside = mask.expand_as(frames) > 0
    assert float((place.frames - bare)[inside].abs().mean()) < 0.3 * float((frames - bare)[inside].abs().mean())


@pytest.mark.parametrize("height_scale", [0.5, 1.0, 1.5])
def test_the_object_stands_on_the_boxs_line_at_its_height_and_centre(height_scale: float) -> None:
    place = empty_place((30, 46, 12, 32), (20, 50, 22, 52))
    for index, (top, bottom, left, right) in enumerate(place.boxes.tolist()):
        picture = put(place, index, RGB, TRUTH, height_scale, 0.02)
        box = box_of(((picture - place.frames[index]).abs().amax(0) > 0.08).numpy())
        assert abs(box.bottom - bottom) <= 1 and abs(box.bottom - box.top - (bottom - top) * height_scale) <= 1
        if box.left > 0 and box.right < 64:  # else cropped at the frame's edge
            assert abs((box.left + box.right) - (left + right)) <= 2


def test_the_targets_own_background_does_not_bleed_into_its_edge() -> None:
    red, green = (torch.tensor(colour).view(3, 1, 1) for colour in ([1.0, -1, -1], [-1.0, 1, -1]))
    picture = put(empty_place((20, 50, 10, 40)), 0, torch.where(TRUTH > 0.5, red, green), TRUTH, 1.0, 0.05)
    assert float(picture[1].max()) < -0.99 and float(picture[0].max()) > 0.99  # no green on black


def test_at_the_frames_edge_the_target_does_not_fade() -> None:
    picture = put(empty_place((30, 46, 54, 64)), 0, torch.ones(3, 20, 40), torch.ones(1, 20, 40), 1.0, 0.1)
    assert picture[:, 34:40, -1].min() > 0.99


# ---- both passes -----------------------------------------------------------------------------------------------------


def test_what_each_mode_shows() -> None:
    image = TargetImage(RGB, TRUTH)
    frames, mask, _ = clip()
    place = find_place(frames, mask)
    assert place is not None
    assert first_pass(image, ReferenceOptions(mode="none")).pictures == ()
    (as_is,) = first_pass(image, ReferenceOptions(mode="as_is")).pictures
    assert torch.equal(as_is[0], RGB)
    for mode, shown in (("in_context", 1), ("joint", 2)):
        options = ReferenceOptions(mode=mode, frame="per_frame")
        first = first_pass(image, options)
        assert torch.equal(first.pictures[0][0], neutral(RGB, TRUTH)) and first.matte is not None
        pictures = second_pass(first, image, place, options).pictures
        assert len(pictures) == shown and pictures[0].shape == frames.shape
        assert torch.equal(pictures[0][3], put(place, 3, RGB, TRUTH, 1.0, options.feather))
    assert torch.equal(pictures[1][0], RGB)
    mirrored = ReferenceOptions(mode="in_context", frame="middle", heading="mirrored")
    (picture,) = second_pass(first, image, place, mirrored).pictures
    assert torch.equal(picture[0], put(place, 3, RGB.flip(-1), TRUTH.flip(-1), 1.0, mirrored.feather))


def test_source_frames() -> None:
    frames = clip()[0]
    assert [frame_indices(6, which) for which in ("middle", "first", "per_frame")] == [[3], [0], [0, 1, 2, 3, 4, 5]]
    assert (
        torch.equal(source_frames(frames, "middle"), frames[3:4]) and source_frames(frames, "per_frame").shape[0] == 6
    )
