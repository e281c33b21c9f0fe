"""The table of mask forms in docs/clips.md, each tried as a user would: every form makes the same edit, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import clips
import numpy as np
import pytest
from PIL import Image
from runs import TINY

import tave
from tave.files import read_json
from tave.video import VideoError, write_mask_video, write_video
from tave.video.frames import from_pixels

COUNT, START, CHOSEN = 8, 2, 5
INSIDE = np.zeros((96, 128), bool)
INSIDE[40:64, 56:84] = True
NUMBERS = INSIDE.astype(np.uint8)
NUMBERS[8:24, 8:28] = 2  # another object
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]  # DAVIS
SOFT = np.where(INSIDE, 255, 0).astype(np.uint8)
SOFT[40:64, 50:56], SOFT[40:64, 84:90] = 100, 120
ONE = ["video.object=1"]
Made = tuple[Path, list[str]]  # the mask, and further words of the command


def pictures(folder: Path, picture: Image.Image, suffix: str = "png", count: int = COUNT, name: str = "{}") -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(count):
        picture.save(folder / f"{name.format(index)}.{suffix}")
    return folder


def davis(numbers: np.ndarray) -> Image.Image:
    picture = Image.fromarray(numbers, "P")
    picture.putpalette(PALETTE)
    return picture


def rgba() -> Image.Image:
    return Image.fromarray(np.dstack([np.full((96, 128, 3), 90, np.uint8), np.where(INSIDE, 255, 0).astype(np.uint8)]))


def video(path: Path, picture: np.ndarray, setting: clips.Setting) -> Path:
    clips.write(path, setting, [picture] * COUNT)
    return path


def beside(folder: Path) -> Path:
    pictures(folder, Image.new("RGB", (128, 96), (9, 9, 9)))
    return pictures(folder, grey(), name="{}_mask")


def grey(inside: np.ndarray = INSIDE) -> Image.Image:
    return Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))


def white_video(path: Path) -> Path:
    write_mask_video(path, from_pixels(np.asarray(grey().convert("RGB"))[None].repeat(COUNT, 0))[:, :1] / 2 + 0.5, 8)
    return path


COLOURS = np.where(INSIDE[..., None], (250, 200, 0), 0).astype(np.uint8)
FORMS: dict[str, Callable[[Path], Made]] = {
    "white on black": lambda at: (pictures(at, grey()), []),
    "16 bit": lambda at: (pictures(at, Image.fromarray(np.where(INSIDE, 65_535, 0).astype(np.uint16))), []),
    "floats, 0 to 1": lambda at: (pictures(at, Image.fromarray(INSIDE.astype(np.float32)), "tif"), []),
    "soft grey": lambda at: (pictures(at, Image.fromarray(SOFT)), []),
    "alpha": lambda at: (pictures(at, rgba()), []),
    "black inside": lambda at: (pictures(at, grey(~INSIDE)), ["video.mask_inverted=true"]),
    "palette (DAVIS, VOC)": lambda at: (pictures(at, davis(NUMBERS)), ONE),
    "that palette's colours": lambda at: (pictures(at, davis(NUMBERS).convert("RGB")), ONE),
    "grey levels below 64": lambda at: (pictures(at, Image.fromarray(NUMBERS)), ONE),
    "up to 64 other colours": lambda at: (
        pictures(at, Image.fromarray(np.array([[0] * 3, [9, 99, 9], [200, 0, 99]], np.uint8)[NUMBERS])), ONE),
    "white video": lambda at: (white_video(at.with_suffix(".mp4")), []),
    "coloured video": lambda at: (video(at.with_suffix(".mp4"), COLOURS, clips.Setting(pixels="yuv444p")), []),
    "video with alpha": lambda at: (
        video(at.with_suffix(".mov"), np.asarray(rgba()), clips.Setting("png", "rgba", {})), []),
    "one picture for all frames": lambda at: (pictures(at, grey(), count=1) / "0.png", []),
    "the chosen frames alone": lambda at: (pictures(at, grey(), count=CHOSEN), []),
    "another size": lambda at: (pictures(at, grey().resize((256, 192), Image.Resampling.NEAREST)), []),
    "`1_mask.png` beside `1.png`": lambda at: (beside(at), []),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 128x96 that is edited in a box around the object; five of its eight frames."""
    folder = tmp_path_factory.mktemp("forms")
    frames = np.random.default_rng(0).integers(90, 120, (COUNT, 96, 128, 3)).astype(np.uint8)
    frames[:, INSIDE] = (200, 40, 40)
    write_video(folder / "clip.mp4", from_pixels(frames), 8, crf=4)
    Image.new("RGB", (32, 32), (10, 200, 10)).save(folder / "target.png")
    words = [*TINY, "logger=none", f"cache={folder / 'cache'}", f"video.start={START}", f"video.frames={CHOSEN}"]
    mask = pictures(folder / "mask", grey())
    words += [f"video.target_image={folder / 'target.png'}", "video.target_prompt=a suv", f"video.mask={mask}"]
    words += ["metrics.enabled=false", "video.edit=reference"]
    tave.tune_clip(folder / "clip.mp4", "a bus", folder=folder / "run", overrides=words, show=False)
    return folder / "run"


def test_the_table_names_the_forms_that_are_tried() -> None:
    page = (Path(__file__).parents[1] / "docs/clips.md").read_text().split("## Masks")[1].split("\n## ")[0]
    assert re.findall(r"(?m)^\| (?!form |---)([^|]+?) \|", page) == list(FORMS)


def test_a_mask_outside_of_the_box_that_was_tuned_on_is_no_edit(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    apart, half = np.zeros_like(INSIDE), np.zeros_like(INSIDE)
    apart[:12, :12], half[44:60, :64] = True, True
    words = ["metrics.enabled=false", f"cache={run.parent / 'cache'}"]

    def edit(name: str, inside: np.ndarray) -> tave.EditedClip:
        mask = pictures(tmp_path / name, grey(inside))
        given = [*words, f"video.mask={mask}"]
        return tave.edit_clip(run, run.parent / "target.png", "a suv", name=name, overrides=given, show=False)

    with pytest.raises(VideoError, match=r"apart: lies outside of .* of its 128x96; tune again with this mask, or"):
        edit("apart", apart)
    assert not (run / "edits/apart").exists()
    edit("half", half)
    left = read_json(run / "edits/half/edit.json")["crop"][0]
    assert f"half: {left / 64:.0%} of it lies outside of the part of the frame that is edited" in caplog.text


@pytest.mark.parametrize("form", FORMS)
def test_every_form_makes_the_same_edit(form: str, run: Path, tmp_path: Path) -> None:
    """An edit's key depends on its region: another one would be made beside the first, as ``edit-2``."""
    mask, words = FORMS[form](tmp_path / "mask")
    words += [f"video.mask={mask}", "metrics.enabled=false", f"cache={run.parent / 'cache'}"]
    edit = tave.edit_clip(run, run.parent / "target.png", "a suv", name="edit", overrides=words, show=False)
    assert edit.folder == run / "edits/edit"
    record = read_json(edit.folder / "edit.json")
    left, top, width, height = record["crop"]
    assert left <= 56 and top <= 40 and left + width >= 84 and top + height >= 64
    with np.load(edit.folder / "soft_mask.npz") as stored:
        cells = stored["mask"]
    at = np.nonzero(cells.all(0))  # all frames alike
    assert cells.shape[0] == CHOSEN and np.array_equal(cells.all(0), cells.any(0))
    scale = width / cells.shape[2]
    box = [left + at[1].min() * scale, left + (at[1].max() + 1) * scale]
    box += [top + at[0].min() * scale, top + (at[0].max() + 1) * scale]
    assert np.abs(np.array(box) - (56, 84, 40, 64)).max() <= scale  # the object, in whole cells
