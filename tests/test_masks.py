"""Masks in every form that people have them, read as they mean them, and said where a reading is a choice."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import clips
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from eval.cases import read_mask
from tave.config import ReadOptions
from tave.video import MaskRequest, Masks, VideoError, View, find_cuts, read_clip, read_masks, write_mask_video

COUNT, HEIGHT, WIDTH = 6, 24, 40
WHOLE = ReadOptions(frames=None, multiple=1)


def squares() -> np.ndarray:
    """`f H W` object numbers: 1 moves right along the top, 2 stands below it."""
    numbers = np.zeros((COUNT, HEIGHT, WIDTH), np.uint8)
    for index in range(COUNT):
        numbers[index, 4:10, 4 + 3 * index : 12 + 3 * index] = 1
    numbers[:, 14:20, 8:16] = 2
    return numbers


NUMBERS = squares()
ONE, BOTH = np.equal(NUMBERS, 1), np.greater(NUMBERS, 0)


def davis(numbers: np.ndarray) -> Image.Image:
    """A palette picture in DAVIS's colours: 1 is (128, 0, 0), 2 is (0, 128, 0)."""
    picture = Image.fromarray(numbers, "P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128, 128, 0, 128, 0, 128, 128, 128, 128, 128])
    return picture


def grey(inside: np.ndarray, level: int = 255) -> Image.Image:
    return Image.fromarray((inside * level).astype(np.uint8))


def rgba(inside: np.ndarray) -> Image.Image:
    """A cut-out: the object's pixels, the rest transparent."""
    pixels = np.full((*inside.shape, 4), (90, 160, 200, 0), np.uint8)
    pixels[..., 3] = inside * 255
    return Image.fromarray(pixels)


def indexed(inside: np.ndarray) -> Image.Image:
    """Black and white in a palette whose first colour is white."""
    picture = Image.fromarray((~inside).astype(np.uint8), "P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    return picture


def clear_palette(inside: np.ndarray) -> Image.Image:
    """A palette picture whose background is a transparent colour."""
    picture = Image.fromarray(inside.astype(np.uint8), "P")
    picture.putpalette([255, 255, 255, 200, 200, 200])
    picture.info["transparency"] = 0
    return picture


def coloured(numbers: np.ndarray) -> Image.Image:
    """Objects in colours of nobody's palette."""
    return Image.fromarray(np.array([(0, 0, 0), (250, 10, 10), (10, 250, 10)], np.uint8)[numbers])


FORMS: dict[str, Callable[[np.ndarray], Image.Image]] = {
    "white": grey,
    "bilevel": lambda inside: grey(inside).convert("1"),
    "white in RGB": lambda inside: grey(inside).convert("RGB"),
    "white in 16 bit": lambda inside: Image.fromarray(inside.astype(np.uint16) * 65_535),
    "white in a palette": indexed,
    "alpha": rgba,
    "alpha of a palette": clear_palette,
    "grey and alpha": lambda inside: rgba(inside).convert("LA"),
    "numbers": lambda inside: grey(inside, 1),
    "numbers in 16 bit": lambda inside: Image.fromarray(inside.astype(np.uint16)),
    "DAVIS": lambda inside: davis(inside.astype(np.uint8)),
    "DAVIS in RGB": lambda inside: davis(inside.astype(np.uint8)).convert("RGB"),
    "red": lambda inside: coloured(inside.astype(np.uint8)),
}


def folder(path: Path, pictures: list[Image.Image]) -> Path:
    path.mkdir()
    for index, picture in enumerate(pictures):
        picture.save(path / f"{index:05d}.png")
    return path


def read(path: Path, count: int = COUNT, **more: object) -> Masks:
    given = {"size": (WIDTH, HEIGHT), "cut": WHOLE, "source": (WIDTH, HEIGHT)} | more
    return read_masks(MaskRequest(path, count, **given))  # pyright: ignore[reportArgumentType]


def same(masks: Masks, inside: np.ndarray) -> bool:
    return torch.equal(masks.inside[:, 0] > 0, torch.from_numpy(inside))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "masks", [FORMS[form](inside) for inside in ONE])
    masks = read(path)
    assert same(masks, ONE)
    assert masks.inside.dtype == torch.float32 and masks.inside.shape == (COUNT, 1, HEIGHT, WIDTH)
    like = torch.zeros(COUNT, 3, HEIGHT, WIDTH)
    assert torch.equal(read_mask(path, like), torch.from_numpy(ONE))  # scoring reads the same
    assert torch.equal(read_mask(path, like, inverted=True), torch.from_numpy(~ONE))
    one = read(path / "00000.png", 3)
    assert same(one, ONE[[0, 0, 0]]) and "its one picture is used for all frames" in one.notes[0]


@pytest.mark.parametrize("form", ["numbers", "davis", "davis in RGB", "colours"])
def test_several_objects_are_named_and_one_can_be_chosen(form: str, tmp_path: Path) -> None:
    make = {"numbers": Image.fromarray, "davis": davis, "colours": coloured}.get(
        form, lambda n: davis(n).convert("RGB")
    )
    path = folder(tmp_path / "masks", [make(numbers) for numbers in NUMBERS])
    everything = read(path)
    assert same(everything, BOTH)
    assert any("has the objects 1-2, and all are inside; video.object=1" in note for note in everything.notes)
    order = {1: 2, 2: 1} if form == "colours" else {1: 1, 2: 2}  # colours are numbered in their order, and that is said
    for number, stored in order.items():
        chosen = read(path, object=number)
        assert same(chosen, np.isin(NUMBERS, stored))
        assert any(f"object {number} of 1-2 is inside" in note for note in chosen.notes)
    if form == "colours":
        assert any("numbered 1 = (10,250,10), 2 = (250,10,10)" in note for note in everything.notes)
    with pytest.raises(VideoError, match=r"video\.mask=.*masks: has no object 3 in these frames; it has 1-2"):
        read(path, object=3)


def test_pixels_of_no_object_are_outside(tmp_path: Path) -> None:
    numbers = NUMBERS.copy()
    numbers[:, 22:] = 255
    pictures = [davis(each) for each in numbers]
    for picture in pictures:
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[7] * 756, 224, 224, 192])
    masks = read(folder(tmp_path / "masks", pictures))
    assert same(masks, BOTH) and any("255 is outside" in note for note in masks.notes)


def test_a_soft_mask_ends_at_half_and_says_so(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, WIDTH))
    for name, picture in (("grey", Image.fromarray(ramp.copy())), ("float", Image.fromarray(ramp / np.float32(255)))):
        path = tmp_path / f"{name}.{'png' if name == 'grey' else 'tif'}"
        picture.save(path)
        masks = read(path)
        assert same(masks, np.repeat(ramp[None] >= 128, COUNT, axis=0))
        assert any("at least half white, 128 of 255" in note for note in masks.notes)


@pytest.mark.parametrize("kind", ["grey", "colour", "alpha"])
def test_a_video_is_a_mask(kind: str, tmp_path: Path) -> None:
    inside = ONE.repeat(4, axis=1).repeat(4, axis=2)
    size: dict[str, object] = {"size": (4 * WIDTH, 4 * HEIGHT), "source": (4 * WIDTH, 4 * HEIGHT)}
    if kind == "grey":
        write_mask_video(tmp_path / "mask.mp4", torch.from_numpy(inside)[:, None].float(), 8)
    elif kind == "colour":
        pictures = [np.asarray(coloured(each.astype(np.uint8))) for each in inside]
        clips.write(tmp_path / "mask.mp4", clips.Setting(pixels="yuv444p"), pictures)
    else:
        pictures = [np.asarray(rgba(each)) for each in inside]
        clips.write(tmp_path / "mask.mov", clips.Setting("png", "rgba", {}), pictures)
    path = next(tmp_path.iterdir())
    assert same(read(path, COUNT, **size), inside)
    with pytest.raises(VideoError, match=r"leave out video\.object, or give palette pictures"):
        read(path, COUNT, object=1, **size)


def test_masks_of_chosen_frames_and_of_the_whole_clip_are_taken(tmp_path: Path) -> None:
    whole = folder(tmp_path / "whole", [grey(inside) for inside in ONE])
    chosen = folder(tmp_path / "chosen", [grey(inside) for inside in ONE[1:6:2]])
    write_mask_video(tmp_path / "whole.mp4", torch.from_numpy(ONE)[:, None].float(), 8)
    cut = ReadOptions(frames=3, start=1, stride=2)
    for path in (whole, chosen, tmp_path / "whole.mp4"):
        assert same(read(path, 3, cut=cut), ONE[1:6:2])
    with pytest.raises(VideoError, match=r"whole: 6 masks for a clip of 4 frames of 40x24; give one for each chosen"):
        read(whole, 4, cut=ReadOptions(frames=4, stride=2))


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_mask_is_brought_to_the_clip_as_the_clip_was(scale: int, tmp_path: Path) -> None:
    """The clip of 40x24 was cropped to its middle 24x24: so is the mask, at any size of the same view."""
    big = ONE.repeat(scale, axis=1).repeat(scale, axis=2)
    path = folder(tmp_path / "masks", [grey(inside) for inside in big])
    cut = ReadOptions(frames=None, width=24, height=24)
    for source in ((WIDTH, HEIGHT), None):  # a run that is edited again may not know
        masks = read(path, size=(24, 24), cut=cut, source=source)
        assert same(masks, ONE[:, :, 8:32])
        assert any("are brought to the clip's 24x24" in note for note in masks.notes) == (scale > 1 or source is None)
    final = folder(tmp_path / "final", [grey(inside[:, 8:32]) for inside in ONE])
    assert same(read(final, size=(24, 24), cut=cut), ONE[:, :, 8:32])
    square = folder(tmp_path / "square", [grey(inside).resize((48, 48), 0) for inside in ONE[:, :, 8:32]])
    assert same(read(square, size=(24, 24), cut=cut), ONE[:, :, 8:32])


def test_reading_holds_one_picture_at_a_time(tmp_path: Path) -> None:
    """40 pictures of 0.5 MB; what is kept of each is 32x24 px."""
    big = ONE[0].repeat(25, axis=0).repeat(20, axis=1)
    path = folder(tmp_path / "masks", [grey(big)] * 40)
    tracemalloc.start()
    try:
        masks = read(path, 40, size=(32, 24), cut=ReadOptions(width=32, height=24), source=(800, 600))
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()
    assert masks.inside.shape == (40, 1, 24, 32)


BOX = {"size": (24, 24), "source": (WIDTH, HEIGHT), "cut": ReadOptions(frames=None, width=24, height=24)}


def in_box(path: Path, view: View, **given: object) -> Masks:
    """Masks for a run that sees a box of the frame."""
    return read_masks(MaskRequest(path, COUNT, **(BOX | given)), view)  # pyright: ignore[reportArgumentType]


def test_a_mask_that_happens_to_have_the_networks_size_is_still_one_of_the_frame(tmp_path: Path) -> None:
    half = folder(tmp_path / "half", [grey(inside[::2, ::2]) for inside in ONE])
    masks = in_box(half, View(0, 0, 20, 12), size=(20, 12), cut=ReadOptions(width=20, height=12, multiple=4))
    assert same(masks, ONE[:, :12, :20][:, ::2, ::2].repeat(2, axis=1).repeat(2, axis=2))
    assert any("its 20x12 are taken as masks of the whole frame" in note for note in masks.notes)
    other = folder(tmp_path / "other", [grey(inside[:, :24]) for inside in ONE])
    own = in_box(other, View(16, 0, 24, 24))  # of another shape than the frame, and exactly what the run shows
    assert same(own, ONE[:, :, :24]) and any("taken as masks of that" in note for note in own.notes)
    for view in (View(16, 0, 12, 12), View(0, 0, WIDTH, HEIGHT)):
        with pytest.raises(VideoError, match=r"is 24x24, of another shape than the clip's frames; give masks of 40x24"):
            in_box(other, view, size=(16, 16), cut=ReadOptions(width=16, height=16))


def test_what_a_run_does_not_show_of_a_mask_is_said(tmp_path: Path) -> None:
    path = folder(tmp_path / "masks", [grey(ONE[0])] * COUNT)  # 4 to 11 across, 4 to 9 down
    assert not any("outside" in note for note in in_box(path, View(0, 0, 24, 24)).notes)
    masks = in_box(path, View(8, 0, 32, 24), size=(32, 24))
    assert same(masks, ONE[[0] * COUNT, :, 8:])
    assert f"video.mask={path}: 50% of it lies outside of the part of the frame that is edited, 32x24 at 8, 0 of its " \
        "40x24; tune again with this mask, or with video.crop=frame" in masks.notes  # fmt: skip
    with pytest.raises(
        VideoError, match=r"outside of the part .* edited, 24x24 at 16, 0 of its 40x24; tune again with"
    ):
        in_box(path, View(16, 0, 24, 24))
    middle = ReadOptions(width=8, height=8, crop="frame")
    left = folder(tmp_path / "left", [grey(np.broadcast_to(np.arange(WIDTH) < 6, (HEIGHT, WIDTH)))] * COUNT)
    with pytest.raises(VideoError, match=r"lies outside of .* of its 40x24; tune with video\.crop=object"):
        read(left, size=(8, 8), cut=middle)


def test_the_box_of_a_mask_is_found_at_its_own_size(tmp_path: Path) -> None:
    """An object of 2 px in frames of which the network sees a twentieth of the pixels."""
    planes = np.zeros((COUNT, 360, 640), bool)
    for index, plane in enumerate(planes):
        plane[200:202, 20 + 90 * index : 22 + 90 * index] = True
    size: dict[str, object] = {"size": (40, 24), "cut": ReadOptions(width=32, height=32), "source": (640, 360)}
    path = folder(tmp_path / "masks", [grey(plane) for plane in planes])
    masks = in_box(path, View(0, 0, 640, 360), **size)
    assert masks.box == View(20, 200, 452, 2)
    assert masks.inside.sum((1, 2, 3)).tolist() == [1] * COUNT  # the pixel that has most of it
    double = folder(tmp_path / "double", [grey(each.repeat(2, axis=0).repeat(2, axis=1)) for each in planes])
    assert in_box(double, View(0, 0, 640, 360), **size).box == View(20, 200, 452, 2)


def test_an_inverted_mask_is_questioned_and_turned(tmp_path: Path) -> None:
    path = folder(tmp_path / "masks", [grey(~inside) for inside in ONE])
    asked = read(path)
    assert any(
        "covers 95% of the frame; if that is the background, set video.mask_inverted=true" in n for n in asked.notes
    )
    assert same(read(path, inverted=True), ONE)
    right = folder(tmp_path / "right", [grey(inside) for inside in ONE])
    assert any("drop video.mask_inverted=true" in note for note in read(right, inverted=True).notes)


def test_frames_without_the_object_are_named_and_no_object_at_all_is_refused(tmp_path: Path) -> None:
    gone = ONE.copy()
    gone[[0, 1, 5]] = False
    masks = read(folder(tmp_path / "masks", [grey(inside) for inside in gone]))
    assert same(masks, gone)
    assert any("is empty in frame 0-1, 5: there the clip comes back as it was" in note for note in masks.notes)
    with pytest.raises(VideoError, match=r"video\.mask=.*none: all 6 masks are empty; draw white where to edit"):
        read(folder(tmp_path / "none", [grey(inside) for inside in np.zeros_like(ONE)]))


def test_frames_and_masks_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "shot", [Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90 + index)) for index in range(COUNT)]
    )
    for index, inside in enumerate(ONE):
        grey(inside).save(path / f"{index:05d}_mask.png")
    clip = read_clip(path, WHOLE)
    assert len(clip.frames) == COUNT and len(clip.frames.unique()) == COUNT
    assert clip.origin is not None and "6 pictures are left out, masks by their names" in (clip.origin.summary or "")
    assert same(read(path), ONE)


def test_cuts_are_found_and_motion_is_none() -> None:
    def shot(seed: int, count: int) -> Tensor:
        scene = torch.rand(1, 3, 6, 10, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        scene = torch.nn.functional.interpolate(scene, (48, 80), mode="bilinear")
        return torch.cat([scene.roll(step, dims=3) for step in range(count)])  # a camera that pans

    assert find_cuts(shot(0, 12)) == []
    assert find_cuts(torch.cat([shot(0, 5), shot(1, 7), shot(2, 4)])) == [5, 12]
    assert find_cuts(shot(0, 2)) == []
