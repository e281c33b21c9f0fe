"""The box around the object: the network's whole resolution for it, in the network's aspect, inside the frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import TINY, of_clip, options

from tave.app.batch import remembered
from tave.app.check import Setting, prepare
from tave.app.job import Job
from tave.cli import compose_options
from tave.config import WHOLE, ReadOptions, VerifyOptions, VideoOptions
from tave.crop import MARGIN, box_around, overview
from tave.files import read_json
from tave.run import Run
from tave.source import clip_of
from tave.stored import entries
from tave.train import train
from tave.verify import verify
from tave.video import Clip, MaskRequest, Masks, View, read_clip, read_masks, write_image, write_video
from tave.video.frames import from_pixels

SHOWN = (640, 360)
QUICK = [*TINY, "metrics.enabled=false", "logger=none"]


def region(top: int, bottom: int, left: int, right: int) -> list[View]:
    """In units of 5 px."""
    return [View(left, top, right - left, bottom - top).scaled(5, 5)]


def test_the_box_has_the_object_in_its_middle_and_a_margin_in_the_networks_aspect() -> None:
    box = box_around(region(30, 40, 50, 70), SHOWN, (32, 32))  # 100x50 px at 250,150
    assert box == View(300 - 70, 175 - 70, 140, 140) and 100 * (1 + 2 * MARGIN) == 140
    assert box_around([*region(30, 35, 50, 60), *region(35, 40, 60, 70)], SHOWN, (32, 32)) == box
    wide = box_around(region(30, 40, 50, 70), SHOWN, (64, 32))
    assert wide.width == 2 * wide.height and wide.size((64, 32), 8) == (64, 32)


@pytest.mark.parametrize(
    "where", [(0, 8, 0, 16), (64, 72, 112, 128), (20, 60, 20, 84), (30, 40, 0, 128), (0, 72, 60, 64), (0, 72, 0, 128)]
)
def test_the_box_covers_the_object_inside_the_frame(where: tuple[int, int, int, int]) -> None:
    box = box_around(region(*where), SHOWN, (32, 32))
    top, bottom, left, right = (5 * side for side in where)
    assert 0 <= box.left <= left and right <= box.left + box.width <= SHOWN[0]
    assert 0 <= box.top <= top and bottom <= box.top + box.height <= SHOWN[1]
    assert box.width == box.height or right - left > SHOWN[1]  # another aspect only where no square covers it
    width, height = box.size((96, 96), 8)
    assert abs(width / height - box.width / box.height) < 0.12 * box.width / box.height
    assert abs(width * height - 96 * 96) < 0.12 * 96 * 96


def test_no_box_has_fewer_pixels_than_the_network() -> None:
    box = box_around(region(30, 31, 50, 51), SHOWN, (96, 96))
    assert (box.width, box.height) == (96, 96)


def test_the_overview_shows_the_whole_frame_in_as_many_pixels() -> None:
    given = VideoOptions(width=96, height=96)
    whole = overview((1920, 1080), given)
    assert whole is not None and whole == (0, 0, 1920, 1080) and whole.size((96, 96), 8) == (128, 72)
    assert overview((96, 96), given) is None and overview((90, 50), given) is None
    assert overview((1920, 1080), VideoOptions(width=96, height=96, crop="frame")) is None
    assert overview((1920, 1080), VideoOptions()) is None  # read at its own size


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A clip of 128x96 with a small object that moves, its masks, and a target."""
    frames = np.full((8, 96, 128, 3), (120, 160, 200), np.uint8)
    (tmp_path / "masks").mkdir()
    for index, frame in enumerate(frames):
        mask = np.zeros((96, 128), np.uint8)
        frame[60:72, 70 + index : 82 + index], mask[60:72, 70 + index : 82 + index] = (200, 40, 40), 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    write_video(tmp_path / "large.mp4", from_pixels(frames), 8, crf=4)
    return tmp_path / "large.mp4"


def test_with_a_mask_the_box_lies_around_it(
    clip: Path, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[tuple[int, int]]()

    def counted(request: MaskRequest, *rest: Any) -> Masks:
        seen.append(request.size)
        return read_masks(request, *rest)

    monkeypatch.setattr("tave.inputs.read_masks", counted)
    words = [f"video.path={large}", f"video.edits.suv.mask={tmp_path / 'masks'}", "metrics.enabled=false"]
    run = train(options(clip, tmp_path / "cache", *words, "video.edits.suv.truth=null"), tmp_path / "run", show=False)
    assert seen == [(40, 32), (32, 32)]  # read for the box, and in the box; no more
    crop = read_json(run / "run.json")["crop"]
    assert crop == read_json(run / "edits/suv/edit.json")["crop"]
    assert crop[2:] == [32, 32] and abs(crop[0] + 16 - 79.5) <= 2 and abs(crop[1] + 16 - 66) <= 2  # 29 px with margin
    edited, source = (read_clip(path, ReadOptions(multiple=1)).frames for path in (run / "edits/suv/edited.mp4", large))
    assert edited.shape == source.shape == (8, 3, 96, 128)
    changed = (edited - source).abs().amax((0, 1)) > 0.1
    rows, columns = torch.nonzero(changed.any(1))[:, 0], torch.nonzero(changed.any(0))[:, 0]
    assert rows.min() >= 54 and rows.max() <= 78 and columns.min() >= 64 and columns.max() <= 96
    assert (edited - source).abs()[:, :, 61:71, 80].mean() > 0.05
    frames = read_clip(run / "source.mp4", ReadOptions(multiple=1)).frames
    left, top = int(crop[0]), int(crop[1])
    assert (frames - source[:, :, top : top + 32, left : left + 32]).abs().max() == 0  # the file's own pixels
    shown = clip_of(run)
    assert shown.view == tuple(crop) and shown.origin is not None and shown.origin.size == (128, 96)
    large.rename(tmp_path / "gone.mp4")  # made again from source.mp4, the mask is still cut as it was
    found = list(verify(VerifyOptions(str(run), remake=True)))
    assert not [str(each) for each in found if each.ok is False]
    assert any("files of" in each.line and "made again" in each.line for each in found)


def test_a_job_is_checked_as_it_will_be_run(large: Path, tmp_path: Path) -> None:
    """Its mask lies at the left edge of a wide clip, of which the middle third is all that video.crop=frame shows."""
    masks, wide = tmp_path / "left", np.full((8, 64, 256, 3), (120, 160, 200), np.uint8)
    masks.mkdir()
    for index in range(8):
        mask = np.zeros((64, 256), np.uint8)
        mask[24:36, 4 + index : 16 + index] = 255
        Image.fromarray(mask).save(masks / f"{index}.png")
    write_video(large, from_pixels(wide), 8, crf=4)
    write_image(tmp_path / "target.png", torch.zeros(3, 32, 32))
    values = {"video.path": "x", "video.target_image": "x", "video.mask": "x", "video.source_prompt": "a bus"}
    job = Job(backbone="tiny", values={**values, "video.target_prompt": "a suv"})
    files = {"video.path": large, "video.mask": masks, "video.target_image": tmp_path / "target.png"}
    at = Setting(str(tmp_path), str(tmp_path / "cache"), str(tmp_path))
    made = prepare(job, {key: str(path) for key, path in files.items()}, at)
    assert not [line for line in made.plan.warnings if "mask" in line or "crop" in line or "left out" in line]


def test_a_dry_run_knows_what_is_stored_of_a_part_of_the_frame(clip: Path, large: Path, tmp_path: Path) -> None:
    """By the place that the cache knows, without another look."""
    own = [f"video.path={large}", "video.edits.suv.truth=null", *QUICK, f"cache={tmp_path / 'cache'}"]
    words = [*of_clip(clip), *own]
    assert remembered(words, tmp_path / "dry") == set() and not (tmp_path / "cache").exists()
    train(compose_options("train", words), tmp_path / "run", show=False)
    assert remembered(words, tmp_path / "dry") == {"locating", "tuning", "inversion", "reconstruction"}


def test_an_object_too_small_for_the_overview_has_its_box(clip: Path, large: Path, tmp_path: Path) -> None:
    """A pixel of 128x96 is a tenth of one of the overview. It stands at the left in one frame, and at 30, 70 after."""
    for index in range(8):
        mask = np.zeros((96, 128), np.uint8)
        mask[70, 30 if index else 4] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    words = [f"video.path={large}", f"video.edits.suv.mask={tmp_path / 'masks'}", "video.edits.suv.truth=null"]
    run = Run.begin(options(clip, tmp_path / "cache", *words), tmp_path / "run", show=False)
    run.close()
    assert run.clip.view is not None
    left, top, width, height = run.clip.view
    assert left <= 4 and left + width > 30 and top <= 70 < top + height and (width, height) == (38, 38)


def test_a_box_and_several_windows_make_one_clip(
    clip: Path, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight frames, in windows of five, in a box that a first look at five of them finds."""

    def look(pipeline: object, part: Clip, prompt: str, target: object) -> torch.Tensor:
        assert len(part.frames) == 5
        found = torch.zeros(5, 1, 32, 40)
        found[:, :, 20:24, 22:28] = 1  # 60 to 71 down, 70 to 89 across
        return found

    monkeypatch.setattr("tave.pipeline.Pipeline.locate", look)
    words = [f"video.path={large}", "video.edits.suv.truth=null", "metrics.enabled=false"]
    words += ["window.frames=5", "window.overlap=1", "mask.threshold=quantile", "mask.quantile=0.5"]
    run = train(options(clip, tmp_path / "cache", *words), tmp_path / "run", show=False)
    record = read_json(run / "run.json")
    left, top, width, height = map(int, record["crop"])
    assert (width, height) == (32, 32) and left <= 70 and top <= 60 and left + 32 >= 89 and top + 32 >= 72
    assert record["size"] == [8, 3, 32, 32] and len(record["windows"]) > 1
    edited, source = (read_clip(path, WHOLE).frames for path in (run / "edits/suv/edited.mp4", large))
    assert edited.shape == source.shape == (8, 3, 96, 128)
    changed = (edited - source).abs().amax(1)
    inside = changed[:, top : top + 32, left : left + 32]
    assert inside.amax((1, 2)).min() > 0.2  # every frame is edited
    changed[:, top - 2 : top + 34, left - 2 : left + 34] = 0
    assert changed.max() < 0.1


def test_without_a_mask_a_first_look_finds_it_or_the_frame_is_taken(
    clip: Path, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, ...]] = []

    def look(pipeline: object, part: object, prompt: str, target: object) -> torch.Tensor:
        seen.append(tuple(part.frames.shape))  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr("tave.pipeline.Pipeline.locate", look)
    words = options(clip, tmp_path / "cache", f"video.path={large}", "video.edits.suv.truth=null")
    found = torch.zeros(8, 1, 32, 40)
    found[0, 0, 16:20, 20:24] = 1
    run = Run.begin(words, tmp_path / "one", show=False)
    run.close()
    assert seen == [(8, 3, 32, 40)]  # the whole 128x96 in the pixels of 32x32
    assert run.clip.view is not None and run.clip.view.width == 32
    again = Run.begin(words, tmp_path / "two", show=False)
    again.close()
    assert again.clip.view == run.clip.view and len(seen) == 1  # stored
    assert [entry.kind for entry in entries(tmp_path / "cache")] == ["place"]  # and of those that a user can prune
    found = torch.zeros(8, 1, 32, 40)
    other = Run.begin(options(clip, tmp_path / "cache2", f"video.path={large}", "video.edits.suv.truth=null"),
                      tmp_path / "three", show=False)  # fmt: skip
    other.close()
    assert other.clip.view == pytest.approx((16, 0, 96, 96), abs=1.5)
    assert "nothing to edit was found in the whole frame, so video.crop=frame is taken" in caplog.text


def test_the_first_look_runs_the_network_and_says_where_it_is_uncertain(
    clip: Path, large: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Random weights tell nothing apart."""
    run = Run.begin(options(clip, tmp_path / "cache", f"video.path={large}", "video.edits.suv.truth=null"),
                    tmp_path / "run", show=False)  # fmt: skip
    run.close()
    assert run.clip.frames.shape[:2] == (8, 3) and "locating" in run.progress.seconds
    assert "edit suv, first look: the edit region is uncertain (separation" in caplog.text
    assert "video.mask=FILE" in caplog.text
