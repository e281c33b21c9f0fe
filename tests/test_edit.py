"""Another edit of a tuned clip: from the command line and from Python, with a mask or a moved backbone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import TINY, ages, call, evaluations, figures_of, frames_of, held_elsewhere, options
from safetensors.torch import load_file, save_file
from torch import Tensor

import tave
import tave.edit
import tave.pipeline
import tave.writer
from tave.backbone import BackboneError
from tave.cache import read_tensors
from tave.config import OptionError
from tave.files import FileError, read_json
from tave.record import differences
from tave.run import Run
from tave.train import train
from tave.video import write_mask_video, write_video


@pytest.fixture(scope="module")
def tuned(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the edit ``suv``. Not to be changed."""
    folder = tmp_path_factory.mktemp("tuned")
    return train(options(clip, folder / "cache"), folder / "run", show=False)


@pytest.fixture
def run(tuned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tuned, tmp_path / "run"))


@pytest.fixture
def edit(clip: Path, run: Path) -> Callable[..., Path]:
    """Edits ``run`` without measuring; returns the edit's folder."""

    def made(name: str, *words: str) -> Path:
        given = ["metrics.enabled=false", f"cache={run.parent / 'cache'}", *words]
        return tave.edit_clip(run, clip / "target.png", "a red suv", name=name, overrides=given, show=False).folder

    return made


def test_a_run_gets_back_what_its_edits_were_made_from(clip: Path, run: Path) -> None:
    """Deleted or removed under way: the edit itself stands."""
    clip_before = (run / "round_trip.mp4").read_bytes()
    latents, _ = read_tensors(run / "trajectory.safetensors")  # the file also holds seconds
    for name in ("round_trip.mp4", "trajectory.safetensors"):
        (run / name).unlink()
    before = ages(run / "edits")
    train(options(clip, run.parent / "cache"), run, show=False)
    assert (run / "round_trip.mp4").read_bytes() == clip_before
    again, _ = read_tensors(run / "trajectory.safetensors")
    assert all(torch.equal(again[name], each) for name, each in latents.items())
    assert ages(run / "edits") == before
    assert not differences(run)


@pytest.mark.slow  # several runs
def test_another_edit_neither_tunes_nor_inverts_and_loses_nothing(
    clip: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tave.pipeline, "invert", lambda *_, **__: pytest.fail("inverted again"))

    def command(prompt: str) -> Path:
        words = [f"video.target_image={clip / 'target.png'}", f"video.target_prompt={prompt}", "video.edit=car"]
        assert call(tave.edit.main, f"run={run}", f"cache={run.parent / 'cache'}", *words) == 0
        return Path(capsys.readouterr().out.strip())

    before = ages(run)
    made = command("a red car on a mountain road")
    assert made == run / "edits" / "car"
    assert {path.name for path in made.iterdir()} >= {"edited.mp4", "mask.mp4", "field.npz", "edit.json"}
    assert figures_of(run).keys() == {"suv", "car"}
    rewritten = ("metrics.json", "round_trip.mp4", "SHA256SUMS")
    kept = {path: at for path, at in before.items() if path.name not in rewritten}
    assert ages(run).items() >= kept.items()
    with evaluations() as seen:
        assert command("a red car on a mountain road") == made
    assert not seen
    assert command("a red bus") == command("a red bus") == run / "edits" / "car-2"
    assert read_json(made / "edit.json")["target_prompt"] == "a red car on a mountain road"


@pytest.mark.slow  # several runs
def test_a_name_at_which_another_process_is_at_work_is_not_free(run: Path, edit: Callable[..., Path]) -> None:
    with held_elsewhere(run / "edits" / "car"):
        assert edit("car") == run / "edits" / "car-2"
    assert edit("car") == run / "edits" / "car"
    assert {path.name for path in (run / "edits").iterdir()} == {"suv", "car", "car-2"}


def test_a_run_whose_folder_goes_under_it_says_so(
    run: Path, edit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = tave.pipeline.sample

    def vandal(*given: Any, **more: Any) -> Tensor:
        shutil.rmtree(run)
        return sample(*given, **more)

    monkeypatch.setattr(tave.pipeline, "sample", vandal)
    with pytest.raises(
        FileError, match=r"run/.*can't be used \(No such file.*: its folder is gone: run the same command again"
    ):
        edit("car")


def test_what_the_tuning_decided_is_refused_in_one_line(run: Path, edit: Callable[..., Path]) -> None:
    with pytest.raises(OptionError, match=r"^tuning\.steps was decided when the clip was tuned: .*$"):
        edit("other", "tuning.steps=5")
    assert [path.name for path in (run / "edits").iterdir()] == ["suv"]


@pytest.mark.parametrize("stored", [None, "", "[]", "{}", '{"config": {"video": 3}}'])
def test_a_folder_without_a_readable_record_is_refused(tmp_path: Path, stored: str | None) -> None:
    if stored is not None:
        (tmp_path / "run.json").write_text(stored)
    with pytest.raises(ValueError, match=r"run\.json.*tave\.train") as refused:
        tave.edit_clip(tmp_path, "car.png", "a car")
    assert "\n" not in str(refused.value)


@pytest.mark.slow  # several runs
def test_another_mask_moves_the_edit_and_leaves_the_source_outside(
    run: Path, edit: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbouring frames are blended; sampling starts from the inverted clip, new noise inside where requested."""
    monkeypatch.setattr(tave.writer, "write_video", partial(write_video, lossless=True))
    starts: list[Tensor] = []
    sample = tave.pipeline.sample
    monkeypatch.setattr(tave.pipeline, "sample", lambda *a, **more: starts.append(a[2]) or sample(*a, **more))
    source, made = frames_of(run / "source.mp4"), []
    inverted = read_tensors(run / "trajectory.safetensors")[0]["latents"][-1]
    for inside, outside in ((slice(0, 16), slice(17, 32)), (slice(16, 32), slice(0, 15))):  # beyond a pixel of feather
        mask = torch.zeros(8, 1, 32, 32)
        mask[..., inside] = 1
        write_mask_video(tmp_path / "mask.mp4", mask, 8.0)
        folder = edit(f"from_{inside.start}", f"video.mask={tmp_path / 'mask.mp4'}", "sampler.fresh_noise=0.5")
        assert (folder / "field.npz").is_file()
        made.append(frames_of(folder / "network.mp4"))
        assert torch.equal(made[-1][..., outside], source[..., outside])
        assert (made[-1] - source)[..., inside].abs().mean() > 0.1
        with np.load(folder / "soft_mask.npz") as stored:
            assert (stored["alpha"][..., inside] == 255).all() and (stored["alpha"][..., outside] == 0).all()
        fresh = (starts[-1] != inverted).all(dim=2)  # cells with fresh noise, of 4 px
        assert torch.equal(fresh, torch.nn.functional.max_pool2d(mask, 4)[None, :, 0] > 0)
    edit("default", f"video.mask={tmp_path / 'mask.mp4'}")
    assert torch.equal(starts[-1], inverted)
    assert not torch.equal(*made)


def test_frames_without_the_object_come_back_as_they_were(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The object is not there at first and leaves the frame: object 1 of palette pictures, inverted and soft ones."""
    monkeypatch.setattr(tave.writer, "write_video", partial(write_video, lossless=True))
    for index in range(8):
        numbers = np.zeros((32, 32), np.uint8)
        numbers[2:8, 2:8] = 2
        if 2 <= index < 6:
            numbers[8:24, 8:24] = 1
        picture = Image.fromarray(numbers, "P")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        (tmp_path / "masks").mkdir(exist_ok=True)
        picture.save(tmp_path / "masks" / f"{index}.png")
    words = [f"video.edits.suv.mask={tmp_path / 'masks'}", "video.edits.suv.object=1", "metrics.enabled=false"]
    given = options(clip, tmp_path / "cache", *words)
    begun = Run.begin(given, tmp_path / "begun", show=False)
    begun.close()
    preview = tave.read_image(tmp_path / "begun" / "mask_preview.png")  # before the tuning
    assert preview.rgb.shape == (3, 32, 3 * 32 + 2 * 2)
    assert "is empty in frame 0-1, 6-7" in caplog.text and "object 1 of 1-2 is inside" in caplog.text
    caplog.clear()
    run = train(given, tmp_path / "run", show=False)
    assert sum("is empty in frame" in message for message in caplog.messages) == 1
    source, made = frames_of(run / "source.mp4"), frames_of(run / "edits" / "suv" / "network.mp4")
    assert torch.equal(made[[0, 1, 6, 7]], source[[0, 1, 6, 7]])
    assert all((made[index] - source[index]).abs().mean() > 0.01 for index in range(2, 6))
    assert read_json(run / "edits" / "suv" / "edit.json")["object"] == 1


@pytest.mark.parametrize("side", [8, 16])
def test_a_tiny_clip_is_refused_before_the_tuning(clip: Path, tmp_path: Path, side: int) -> None:
    write_video(tmp_path / "tiny.mp4", torch.zeros(8, 3, side, side), 8)
    words = [f"video.path={tmp_path / 'tiny.mp4'}", "video.width=32", "video.height=32"]
    with pytest.raises(OptionError, match=rf"tiny\.mp4: is {side}x{side}, too small to edit"):
        train(options(clip, tmp_path / "cache", *words), tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # several runs
def test_a_mask_of_the_whole_picture_fits_a_later_edit_too(clip: Path, tmp_path: Path) -> None:
    """The run cropped the clip; the mask is of the clip as it was, so ``run.json`` has to know its size."""
    small = ["backbone=tiny", "tuning.steps=1", "inversion.steps=2", "logger=none", f"cache={tmp_path / 'cache'}"]
    wide = torch.zeros(8, 3, 32, 64).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "wide.mp4", wide, 8, lossless=True)
    cut = ["video.width=32", "video.height=32"]
    run = tave.tune_clip(tmp_path / "wide.mp4", "a bus", folder=tmp_path / "run", overrides=[*small, *cut], show=False)
    mask = torch.zeros(8, 1, 32, 64)
    mask[:, :, 8:24, 20:28] = 1
    write_mask_video(tmp_path / "mask.mp4", mask, 8)
    words = [f"video.mask={tmp_path / 'mask.mp4'}", "metrics.enabled=false", "sampler.feather=0"]
    edit = tave.edit_clip(run, clip / "target.png", "a red suv", overrides=words, show=False)
    assert torch.equal(edit.mask, mask[..., 16:48])
    assert (run.folder / "mask_preview.png").is_file()


@pytest.mark.slow  # several runs
def test_a_moved_backbone_edits_and_another_one_is_refused(clip: Path, saved: Path, tmp_path: Path) -> None:
    here, there = Path(shutil.copytree(saved, tmp_path / "here")), tmp_path / "there"
    small = [*TINY[1:], "backbone=folder", f"backbone.path={here}", "video.width=32", "video.height=32"]
    small += ["video.multiple=8", "logger=none", f"cache={tmp_path / 'cache'}"]
    run = tave.tune_clip(clip / "source.mp4", "a white bus", folder=tmp_path / "run", overrides=small, show=False)
    here.rename(there)

    def edit(*words: str) -> tave.EditedClip:
        given = [*words, "metrics.enabled=false", f"cache={tmp_path / 'cache'}"]
        return tave.edit_clip(run, clip / "target.png", "a red suv", overrides=given, show=False)

    with pytest.raises(ValueError, match=r"here not found"):
        edit()
    assert edit(f"backbone.path={there}").frames.shape == (8, 3, 32, 32)
    weights = there / "unet/diffusion_pytorch_model.safetensors"
    save_file({key: tensor * 1.01 for key, tensor in load_file(weights).items()}, weights)
    with pytest.raises(BackboneError, match=r"unet.* is from another backbone"):
        edit(f"backbone.path={there}", "sampler.guidance_scale=2")


@pytest.mark.slow  # several runs
def test_a_notebook_gets_frames_mask_and_figures(clip: Path, tmp_path: Path) -> None:
    small = [*TINY, "tuning.steps=1", "logger=none", f"cache={tmp_path / 'cache'}"]
    run = tave.tune_clip(clip / "source.mp4", "a white bus", folder=tmp_path / "run", overrides=small, show=False)
    assert isinstance(run, tave.TunedClip)
    assert run.folder == tmp_path / "run" and not (run.folder / "edits").exists()
    assert torch.equal(run.frames, frames_of(clip / "source.mp4"))
    cache = [f"cache={tmp_path / 'cache'}"]
    edit = tave.edit_clip(run, clip / "target.png", "a red suv", name="suv", overrides=cache, show=False)
    assert isinstance(edit, tave.EditedClip)
    assert edit.folder == run.folder / "edits/suv"
    assert edit.frames.shape == run.frames.shape == (8, 3, 32, 32)
    assert edit.mask.shape == (8, 1, 32, 32) and set(edit.mask.unique().tolist()) == {0.0, 1.0}
    assert edit.figures["background_psnr_outside_mask"] > 20
    folder = str(run.folder)
    again = tave.edit_clip(folder, clip / "target.png", "a red suv", name="suv", overrides=cache, show=False)
    assert again.folder == edit.folder


@pytest.mark.slow  # several runs
def test_several_pictures_of_one_object_are_all_shown(clip: Path, run: Path) -> None:
    image, other = clip / "target.png", run / "edits/suv/side_by_side.png"
    given = ["reference.mode=as_is", "metrics.enabled=false", f"cache={run.parent / 'cache'}"]
    one, two, both = (
        tave.edit_clip(run, images, "a red suv", overrides=given, show=False)
        for images in (image, [image, image], [image, other])
    )
    assert torch.equal(one.frames, two.frames)  # the mean of a picture and itself
    assert not torch.equal(one.frames, both.frames) and (both.folder / "reference-2.png").is_file()
    assert [more["target_image"] for more in read_json(both.folder / "edit.json")["more_images"]] == [str(other)]
