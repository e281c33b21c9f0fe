"""Another edit of a tuned clip: from the command line and from Python, with a mask or a moved backbone."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import TINY, WHOLE, ages, evaluations, figures_of, frames_of, options
from safetensors.torch import load_file, save_file
from torch import Tensor

import tave
import tave.edit
import tave.pipeline
import tave.writer
from tave.cache import StoredError, read_tensors
from tave.files import read_json, write_json
from tave.train import train
from tave.video import read_clip, write_mask_video, write_video

BLIND = "metrics.judge=null"


@pytest.fixture(scope="module")
def tuned(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the edit ``suv``. Not to be changed."""
    folder = tmp_path_factory.mktemp("tuned")
    return train(options(clip, folder / "cache"), folder / "run", show=False)


@pytest.fixture
def run(tuned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tuned, tmp_path / "run"))


@pytest.fixture
def edit(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """``tave-edit run=RUN ...``; returns the folder that it prints."""

    def command(*words: str) -> Path:
        monkeypatch.setattr(sys, "argv", ["tave-edit", f"run={run}", *words])
        tave.edit.main()
        return Path(capsys.readouterr().out.strip())

    return command


def requested(clip: Path, prompt: str = "a red car on a mountain road", name: str = "car") -> list[str]:
    return [f"video.target_image={clip / 'target.png'}", f"video.target_prompt={prompt}", f"video.edit={name}"]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_another_edit_neither_tunes_nor_inverts_and_loses_nothing(
    clip: Path, run: Path, edit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tave.pipeline, "invert", lambda *_, **__: pytest.fail("inverted again"))
    before = ages(run)
    made = edit(*requested(clip))
    assert made == run / "edits" / "car"
    assert {path.name for path in made.iterdir()} >= {"edited.mp4", "mask.mp4", "field.npz", "edit.json"}
    assert figures_of(run).keys() == {"suv", "car"}
    kept = {"tuned.safetensors", "trajectory.safetensors", "run.json"}
    assert all(ages(run)[path] == at for path, at in before.items() if path.name in kept or "edits" in path.parts)
    with evaluations() as seen:
        assert edit(*requested(clip)) == made
    assert not seen
    assert edit(*requested(clip, "a red bus")) == run / "edits" / "car-2"
    assert edit(*requested(clip, "a red bus")) == run / "edits" / "car-2"
    assert read_json(made / "edit.json")["target_prompt"] == "a red car on a mountain road"


def test_an_edit_equals_that_of_a_run_that_requested_it_at_once(
    clip: Path, run: Path, edit: Callable[..., Path]
) -> None:
    suv = read_json(run / "edits/suv/edit.json")
    made = edit(*requested(clip, suv["target_prompt"], "again"))
    assert read_json(made / "edit.json")["key"] == suv["key"]
    assert torch.equal(frames_of(made / "edited.mp4"), frames_of(run / "edits/suv/edited.mp4"))


def test_options_of_the_edit_change_and_the_runs_stay(clip: Path, run: Path, edit: Callable[..., Path]) -> None:
    made = read_json(edit(*requested(clip), "correction.enabled=false", "sampler.fresh_noise=0") / "edit.json")
    assert made["options"]["correction"]["enabled"] is False
    assert made["options"]["sampler"]["fresh_noise"] == 0
    assert made["options"]["sampler"]["guidance_scale"] == 3.0
    assert made["overrides"][-2:] == ["correction.enabled=false", "sampler.fresh_noise=0"]
    assert not (run / "edits/car/field.npz").exists()


@pytest.mark.parametrize("word", ["tuning.steps=5", "video.frames=4", "seed=1", "inversion.steps=3", "backbone.seed=1"])
def test_what_the_tuning_decided_is_refused_in_one_line(
    clip: Path, run: Path, edit: Callable[..., Path], capsys: pytest.CaptureFixture[str], word: str
) -> None:
    with pytest.raises(SystemExit) as left:
        edit(*requested(clip), word)
    assert left.value.code == 1
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {word.partition('=')[0]} was decided when the clip was tuned")
    assert not (run / "edits/car").exists()


@pytest.mark.parametrize("stored", [None, "", "[]", "{}", '{"config": {"video": 3}}'])
def test_a_folder_without_a_readable_record_is_refused(tmp_path: Path, stored: str | None) -> None:
    if stored is not None:
        (tmp_path / "run.json").write_text(stored)
    with pytest.raises(ValueError, match=r"run\.json.*tave\.train") as refused:
        tave.edit_clip(tmp_path, "car.png", "a car")
    assert "\n" not in str(refused.value)


# ---- a mask of one's own ---------------------------------------------------------------------------------------------


@pytest.fixture
def lossless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits keep every bit in their files."""
    monkeypatch.setattr(tave.writer, "write_video", partial(write_video, lossless=True))


def half(folder: Path, source: Tensor, side: str) -> Path:
    """A mask clip that is white on one side of the frame."""
    mask = torch.zeros_like(source[:, :1])
    middle = source.shape[-1] // 2
    mask[..., slice(0, middle) if side == "left" else slice(middle, None)] = 1
    write_mask_video(folder / f"{side}.mp4", mask, 8.0)
    return folder / f"{side}.mp4"


@pytest.mark.usefixtures("lossless")
def test_another_mask_moves_the_edit_and_leaves_the_source_outside(
    clip: Path, run: Path, edit: Callable[..., Path], tmp_path: Path
) -> None:
    source, made = frames_of(run / "source.mp4"), {}
    for side in ("left", "right"):
        folder = edit(*requested(clip, name=side), f"video.mask={half(tmp_path, source, side)}")
        assert (folder / "field.npz").is_file()  # of the correction, which is on by default
        with np.load(folder / "soft_mask.npz") as stored:
            alpha = torch.from_numpy(stored["alpha"])[:, None].expand_as(source)
        frames = made[side] = frames_of(folder / "edited.mp4")
        assert torch.equal(frames[alpha == 0], source[alpha == 0])
        assert (frames - source)[alpha == 255].abs().mean() > 0.1
        inside = slice(0, 8) if side == "left" else slice(-8, None)
        assert (alpha[..., inside] == 255).all() and (alpha[..., 8:].flip(-1) if side == "right" else alpha)[
            ..., -8:
        ].max() == 0
    found = frames_of(run / "edits/suv/edited.mp4")
    assert not torch.equal(made["left"], made["right"]) and not torch.equal(made["left"], found)


def test_sampling_starts_from_the_inverted_clip_with_fresh_noise_inside_the_mask(
    clip: Path, run: Path, edit: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Tensor] = []
    sample = tave.pipeline.sample

    def spied(denoiser: object, schedule: object, start: Tensor, *rest: object, **more: object) -> Tensor:
        starts.append(start)
        return sample(denoiser, schedule, start, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(tave.pipeline, "sample", spied)
    mask = half(tmp_path, frames_of(run / "source.mp4"), "left")
    for share in (0, 0.5, 1):
        edit(*requested(clip, name=f"share-{int(10 * share)}"), f"video.mask={mask}", f"sampler.fresh_noise={share}")
    inverted = read_tensors(run / "trajectory.safetensors")[0]["latents"][-1]
    middle = inverted.shape[-1] // 2
    inside = [start[..., : middle - 1].flatten() for start in starts]
    assert torch.equal(starts[0], inverted)
    assert all(torch.equal(start[..., middle + 1 :], inverted[..., middle + 1 :]) for start in starts)
    alike = [float(torch.corrcoef(torch.stack([inside[0], other]))[0, 1]) for other in inside]
    assert alike[0] > alike[1] > 0.4 > abs(alike[2])


# ---- another place of the weights ------------------------------------------------------------------------------------


def test_a_moved_backbone_edits_and_another_one_is_refused(clip: Path, saved: Path, tmp_path: Path) -> None:
    here, there = Path(shutil.copytree(saved, tmp_path / "here")), tmp_path / "there"
    small = [*TINY[1:], "backbone=folder", f"backbone.path={here}", "video.width=32", "video.height=32"]
    small += ["video.multiple=8", "logger=none", f"cache={tmp_path / 'cache'}"]
    run = tave.tune_clip(clip / "source.mp4", "a white bus", folder=tmp_path / "run", overrides=small, show=False)
    here.rename(there)

    def edit(*words: str) -> tave.EditedClip:
        given = [*words, "metrics.enabled=false"]
        return tave.edit_clip(run, clip / "target.png", "a red suv", overrides=given, show=False)

    with pytest.raises(ValueError, match=r"here not found"):
        edit()
    assert edit(f"backbone.path={there}").frames.shape == (8, 3, 32, 32)
    weights = there / "unet/diffusion_pytorch_model.safetensors"
    save_file({key: tensor * 1.01 for key, tensor in load_file(weights).items()}, weights)
    with pytest.raises(StoredError, match=r"another backbone.*unet"):
        edit(f"backbone.path={there}", "sampler.guidance_scale=2")


# ---- from Python -----------------------------------------------------------------------------------------------------


def test_a_notebook_gets_frames_mask_and_figures(clip: Path, tmp_path: Path) -> None:
    small = [*TINY, "tuning.steps=1", "logger=none", f"cache={tmp_path / 'cache'}"]
    run = tave.tune_clip(clip / "source.mp4", "a white bus", folder=tmp_path / "run", overrides=small, show=False)
    assert isinstance(run, tave.TunedClip)
    assert run.folder == tmp_path / "run" and not (run.folder / "edits").exists()
    assert torch.equal(run.frames, read_clip(clip / "source.mp4", WHOLE).frames)
    edit = tave.edit_clip(run, clip / "target.png", "a red suv", name="suv", overrides=[BLIND], show=False)
    assert isinstance(edit, tave.EditedClip)
    assert edit.folder == run.folder / "edits/suv"
    assert edit.frames.shape == run.frames.shape == (8, 3, 32, 32)
    assert edit.mask.shape == (8, 1, 32, 32) and set(edit.mask.unique().tolist()) <= {0.0, 1.0}
    assert 0 < edit.mask.mean() < 1
    assert edit.figures["background_psnr_outside_mask"] > 20
    again = tave.edit_clip(str(run.folder), clip / "target.png", "a red suv", name="suv", overrides=[BLIND], show=False)
    assert again.folder == edit.folder


def test_several_pictures_of_one_object_are_all_shown(clip: Path, run: Path) -> None:
    image = clip / "target.png"
    given = [BLIND, "metrics.enabled=false"]
    one, two = (
        tave.edit_clip(run, images, "a red suv", name=name, overrides=given, show=False)
        for name, images in (("one", image), ("two", [image, image]))
    )
    assert torch.equal(one.frames, two.frames)  # the mean of a picture and itself
    assert (two.folder / "reference-2.png").is_file() and not (one.folder / "reference-2.png").exists()
    assert [more["target_image"] for more in read_json(two.folder / "edit.json")["more_images"]] == [str(image)]
    other = tave.edit_clip(run, [image, run / "edits/suv/reference.png"], "a red suv", overrides=given, show=False)
    assert not torch.equal(other.frames, one.frames)


@pytest.mark.parametrize("word", ["tuning.stepz=3", "backbone=nowhere", "video.fit=wide"])
def test_tuning_from_python_refuses_in_one_line(tmp_path: Path, word: str) -> None:
    with pytest.raises(ValueError, match=word.partition("=")[0]) as refused:
        tave.tune_clip("clip.mp4", "a bus", folder=tmp_path / "run", overrides=[word])
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_figures_are_empty_where_nothing_was_measured(run: Path) -> None:
    write_json(run / "metrics.json", {})
    assert tave.EditedClip(run / "edits/suv").figures == {}
