"""The user's story on the tiny backbone: a clip in, its edit out, another edit, and what happens when things go wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

import eval.score
import tave
import tave.editor
from eval.records import RunError
from eval.score import score_run
from tave.cache import StoredError, read_tensors
from tave.config import CONF, TrainOptions, typed
from tave.data import Request, TargetImage
from tave.editor import Edit
from tave.options import OptionError
from tave.run import Run
from tave.train import train
from tave.video import ReadOptions, VideoError, read_clip, read_image, write_image, write_video

WHOLE = ReadOptions(frames=None, multiple=1)

CLIP = "+video=bus_to_suv"
PROMPTS = ('video.source_prompt="a white bus"', 'video.target_prompt="a red car"')


@pytest.fixture(scope="module")
def clip(clip: Path) -> list[str]:
    """The drawn clip, as options."""
    edit = f"video.edits.suv.target_image={clip / 'target.png'}"
    return [CLIP, f"video.path={clip / 'source.mp4'}", edit, f"video.edits.suv.truth={clip / 'truth'}"]


def options(*overrides: str, cache: Path) -> TrainOptions:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("train", ["backbone=tiny", f"cache={cache}", "metrics.judge=null", *overrides]))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(clip: list[str], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(options(*clip, cache=cache), tmp_path_factory.mktemp("run"), show=False)


def test_a_run_leaves_all_that_it_promises(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"run.json", "tuned.safetensors", "tuned.json", "metrics.json", "trajectory.safetensors"} <= names
    assert {"source.mp4", "round_trip.mp4"} <= names
    made = {path.name for path in (run / "edits" / "suv").iterdir()}
    pictures = {"edited.mp4", "mask.mp4", "placed.mp4", "side_by_side.mp4", "side_by_side.png", "reference.png"}
    assert pictures | {"soft_mask.npz", "field.npz", "truth", "edit.json"} == made
    assert not list(run.rglob(".*"))


def test_the_numbers_are_those_that_are_promised(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"reconstruction_psnr", "autoencoder_psnr"} <= set(metrics)
    for stage in ("encoding", "tuning", "inversion", "masking", "sampling", "decoding", "writing"):
        assert metrics["stages"][stage]["seconds"] >= 0
        assert metrics["stages"][stage]["peak_mb"] > 0
    figures = metrics["edits"]["suv"]
    promised = {
        "background_psnr_outside_mask",
        "background_psnr",
        "mask_area_ratio",
        "residue",
        "mask_recall",
        "mask_iou_union",
        "mask_iou_final",
    }
    assert promised | {
        "object_presence",
        "ideal_psnr",
        "ideal_psnr_aligned",
        "ideal_ssim_aligned",
        "warp_error_object",
        "background_psnr_autoencoder",
        "background_ssim_autoencoder",
    } <= set(figures)
    assert set(metrics["metrics"]) == set(figures)
    assert all({"id", "higher_is_better", "unit"} == set(about) for about in metrics["metrics"].values())


def test_the_record_says_how_it_was_made(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["mask"]["threshold"] == "otsu"
    assert record["seed"] == 33
    assert record["weights"]["unet"]
    assert len(record["inputs"]) == 2


def test_the_background_is_the_sources_own(run: Path) -> None:
    source, edited = read_clip(run / "source.mp4", WHOLE).frames, read_clip(run / "edits/suv/edited.mp4", WHOLE).frames
    with np.load(run / "edits/suv/soft_mask.npz") as stored:
        outside = torch.from_numpy(stored["alpha"] == 0)[:, None].expand_as(source)
    assert outside.any()
    assert (source - edited)[outside].abs().mean() < 0.03


def test_two_runs_with_one_seed_are_the_same_to_the_bit(run: Path, clip: list[str], tmp_path: Path) -> None:
    again = train(options(*clip, cache=tmp_path / "cache"), tmp_path / "run", show=False)
    for name in ("tuned.safetensors", "trajectory.safetensors"):
        one, other = read_tensors(run / name)[0], read_tensors(again / name)[0]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (run / "edits/suv/edited.mp4").read_bytes() == (again / "edits/suv/edited.mp4").read_bytes()


def test_the_truth_has_no_part_in_the_edit(run: Path, clip: list[str], cache: Path, tmp_path: Path) -> None:
    blind = train(options(*clip, "video.edits.suv.truth=null", cache=cache), tmp_path, show=False)
    assert not (blind / "edits/suv/truth").exists()
    for name in ("edited.mp4", "mask.mp4"):
        assert (blind / "edits/suv" / name).read_bytes() == (run / "edits/suv" / name).read_bytes()


def test_what_is_remembered_is_not_made_again(run: Path, clip: list[str], cache: Path, tmp_path: Path) -> None:
    again = train(options(*clip, "correction=none", cache=cache), tmp_path, show=False)
    stages = json.loads((again / "metrics.json").read_text())["stages"]
    assert not {"tuning", "inversion", "reconstruction"} & set(stages)
    assert (again / "tuned.safetensors").read_bytes() == (run / "tuned.safetensors").read_bytes()


def test_another_edit_of_a_tuned_clip(run: Path, tmp_path: Path) -> None:
    image = torch.full((3, 40, 60), 0.8)
    image[:, 12:30, 10:50] = torch.tensor([0.9, -0.8, -0.8])[:, None, None]
    write_image(tmp_path / "car.png", image)
    before = (run / "edits/suv/edited.mp4").read_bytes()
    made = tave.edit_clip(
        run, tmp_path / "car.png", "a red car on a mountain road", overrides=["metrics.judge=null"], show=False
    )
    assert made == run / "edits" / "car"
    assert (made / "edited.mp4").is_file()
    second = tave.edit_clip(run, tmp_path / "car.png", "a red car", overrides=["metrics.judge=null"], show=False)
    assert second == run / "edits" / "car-2"  # nothing that was there is lost
    assert (run / "edits/suv/edited.mp4").read_bytes() == before
    assert set(score_run(run, None)) == {"suv", "car", "car-2"}


def test_several_pictures_of_one_object(run: Path, clip: list[str]) -> None:
    """The same one twice is the same edit, to the bit; two different ones are both shown to the encoder."""
    image, blind = Path(clip[2].partition("=")[2]), ["metrics.judge=null"]
    one, two = (
        tave.edit_clip(run, images, "a red suv", name=name, overrides=blind, show=False)
        for name, images in (("one", image), ("two", [image, image]))
    )
    assert (one / "edited.mp4").read_bytes() == (two / "edited.mp4").read_bytes()
    assert (two / "reference.png").read_bytes() == (two / "reference-2.png").read_bytes()
    assert not (one / "reference-2.png").exists()
    told = json.loads((two / "edit.json").read_text())
    assert [other["target_image"] for other in told["more_images"]] == [told["target_image"]]
    turns = [
        "reference.several=alternate",
        "reference.matte=none",
        "sampler.image_guidance_scale=2",
        "reference.confine=source",
        *blind,
    ]
    made = tave.edit_clip(run, [image, run / "edits/suv/reference.png"], "a red suv", name="turns", overrides=turns, show=False)
    assert (made / "edited.mp4").read_bytes() != (one / "edited.mp4").read_bytes()


def test_three_lines_of_a_notebook(clip: list[str], cache: Path, tmp_path: Path) -> None:
    source = Path(clip[1].removeprefix("video.path="))
    small = ["backbone=tiny", f"cache={cache}", "tuning.steps=1", "inversion.steps=2", "metrics.judge=null"]
    run = tave.tune_clip(source, "a white bus", folder=tmp_path / "run", overrides=small, show=False)
    assert (run / "tuned.safetensors").is_file() and not (run / "edits").exists()
    made = tave.edit_clip(run, source.parent / "target.png", "a red car", show=False)
    assert (made / "edited.mp4").is_file()


@pytest.mark.slow  # processes of their own, each with its imports
def test_a_killed_tuning_goes_on_where_it_stopped(cache: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tave.train", CLIP, "backbone=tiny", "metrics=none", "tuning.steps=120"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(where: str) -> subprocess.Popen[bytes]:
        folders = [f"cache={tmp_path / where / 'cache'}", f"hydra.run.dir={tmp_path / where / 'run'}"]
        return subprocess.Popen([*command, *folders], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    killed = start("killed")
    checkpoint, deadline = tmp_path / "killed" / "cache", time.monotonic() + 300
    while not list(checkpoint.glob("tuned-*/last.ckpt")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(checkpoint.glob("tuned-*/last.ckpt")), "the run ended before it could be killed"
    assert not list(checkpoint.glob("tuned-*.safetensors"))
    runs = [start("killed"), start("whole")]
    assert [process.wait(timeout=300) for process in runs] == [0, 0]
    one, other = (read_tensors(tmp_path / where / "run" / "tuned.safetensors")[0] for where in ("killed", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("size", "fps"),
    [((48, 80), 24.0), ((80, 48), 12.5), ((63, 47), 29.97)],
    ids=["landscape", "portrait", "odd"],
)
def test_anybodys_clip_of_any_shape(size: tuple[int, int], fps: float, cache: Path, tmp_path: Path) -> None:
    frames = torch.rand(6, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(tmp_path / "mine.mp4", frames, fps)
    write_image(tmp_path / "car.png", frames[0])
    mine = ["+video=custom", f"video.path={tmp_path / 'mine.mp4'}", f"video.target_image={tmp_path / 'car.png'}", *PROMPTS]
    own = ["video.frames=3", "video.stride=2", "video.width=null", "video.height=null", "tuning.steps=1", "inversion.steps=2"]
    with pytest.warns(UserWarning):  # noise has no object that could be cut out
        made = train(options(*mine, *own, cache=cache), tmp_path / "run", show=False)
    edited = read_clip(made / "edits/car/edited.mp4", WHOLE)
    assert edited.frames.shape == (3, 3, size[0] // 8 * 8, size[1] // 8 * 8)
    assert edited.fps == pytest.approx(fps / 2, rel=1e-3)


def test_wrong_input_is_refused_before_anything_is_made(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(VideoError, match=r"nowhere\.mp4"):
        train(options(CLIP, "video.path=nowhere.mp4", cache=cache), out, show=False)
    with pytest.raises(VideoError, match=r"nobody\.png"):
        train(options(CLIP, "video.edits.suv.target_image=nobody.png", cache=cache), out, show=False)
    with pytest.raises(VideoError, match="frames"):
        train(options(CLIP, "video.frames=99", cache=cache), out, show=False)
    assert not out.exists()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["video.edits.suv.matte={folder}/small.png"], r"opaque\.png: the given matte is 10x10 but the target image is"),
        (["video.edits.suv.target_image={folder}/clear.png"], r"clear\.png: the target image's alpha is empty"),
        (["reference.matte=alpha"], r"opaque\.png: reference\.matte=alpha but the target image is opaque"),
        (["reference.matte=given"], r"opaque\.png: reference\.matte=given but there is no matte"),
        (["correction.block=7"], r"correction\.block=7 is out of range: set it between -3 and 2"),
        (["correction.steps=[0.9,0.91]"], r"correction\.steps=\[0\.9, 0\.91\] holds none of"),
        (["mask.steps=[0.0,0.01]"], r"mask\.steps=\[0\.0, 0\.01\] holds none of inversion\.steps=4"),
        (["video.edits.suv.truth=/nope"], r"video\.edits\.suv\.truth=/nope holds no truth\.npz"),
        (["trainer.precision=banana"], r"^trainer: .*banana.*(16-mixed|bf16)"),
        (["trainer.accelerator=nonsense"], r"^trainer: .*nonsense"),
        (["+backbone.prediction_type=3"], r"prediction_type=3"),
        (["backbone.seed=twelve"], r"^backbone: .*twelve.*below backbone$"),
        (["metrics.objective=nonsense"], r"metrics\.objective=nonsense is no figure: did you mean"),
        (["metrics.objective=residu"], r"did you mean residue"),
        (["metrics.objective=residue", "metrics=none"], r"metrics\.objective=residue, but nothing is measured"),
        (["metrics.judge=/nope"], r"metrics\.judge=/nope holds no classes\.json"),
    ],
)
def test_what_only_the_edit_needs_is_refused_before_the_tuning(
    wrong: list[str], named: str, clip: list[str], cache: Path, tmp_path: Path
) -> None:
    picture = read_image(clip[2].partition("=")[2]).rgb
    write_image(tmp_path / "opaque.png", picture)
    write_image(tmp_path / "small.png", torch.ones(3, 10, 10))
    Image.new("RGBA", (32, 32)).save(tmp_path / "clear.png")
    asked = [*clip, f"video.edits.suv.target_image={tmp_path / 'opaque.png'}"]
    with pytest.raises(ValueError, match=named):
        train(options(*asked, *(word.format(folder=tmp_path) for word in wrong), cache=cache), tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()


def test_a_reference_without_a_matte_needs_none(clip: list[str], cache: Path, tmp_path: Path) -> None:
    """The same wrong matte is never looked at where the picture speaks as it is."""
    write_image(tmp_path / "small.png", torch.ones(3, 10, 10))
    told = [f"video.edits.suv.matte={tmp_path / 'small.png'}", "reference=as_is", "metrics=none"]
    assert (train(options(*clip, *told, cache=cache), tmp_path / "run", show=False) / "edits/suv/edited.mp4").is_file()


def test_a_folder_of_another_clip_stays_as_it_is(run: Path, clip: list[str], cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for other in ("video.frames=2", "tuning.lr=1e-3"):
        with pytest.raises(StoredError, match=r"another clip or another tuning: give another hydra\.run\.dir"):
            train(options(*clip, other, cache=cache), run, show=False)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_figure_that_can_not_be_measured_costs_no_edit_its_record(
    run: Path, clip: list[str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, here = tmp_path / "target.png", Path(shutil.copytree(run, tmp_path / "run"))
    Path(shutil.copytree(here / "edits/suv", here / "edits/old") / "edited.mp4").write_text("no clip, and not asked for")
    write_image(image, read_image(clip[2].partition("=")[2]).rgb)
    asked = options(*clip, f"video.edits.suv.target_image={image}", cache=cache)

    def fails(*_: Any) -> None:
        raise RunError("cannot be measured")

    with monkeypatch.context() as patched, pytest.raises(RunError, match="cannot be measured"):
        patched.setattr(eval.score, "score_run", fails)
        train(asked, here, show=False)
    assert str(image) in json.loads((here / "run.json").read_text())["inputs"]
    assert "suv" not in json.loads((here / "metrics.json").read_text())["edits"]  # those were the edit's before it
    again = tave.edit_clip(here, image, "a red suv", name="more", overrides=["metrics.enabled=false"], show=False)
    assert (again / "edited.mp4").is_file()
    train(asked, here, show=False)
    assert json.loads((here / "metrics.json").read_text())["edits"]["suv"]


def test_an_empty_region_gives_the_source_back(clip: list[str], cache: Path, tmp_path: Path) -> None:
    """METHOD 6: without the composite as the autoencoder returns it, with the composite every bit of it."""
    made, begun = {}, {}
    for kept in (False, True):
        asked = options(*clip, f"sampler.composite={str(kept).lower()}", "tuning=none", cache=cache)
        with closing(Run.begin(asked, tmp_path / str(kept), show=False)) as run:
            picture = TargetImage(*read_image(clip[2].partition("=")[2]))
            run.data.ask(
                [Request("none", "a red suv", [picture], torch.zeros_like(run.clip.frames[:, :1]))],
                run._inverted,
                run._remembered,
            )
            (task,) = run.data.predict_dataloader()
            with torch.no_grad():
                made[kept], begun[kept] = run.editor.predict_step(task, 0).frames, run.data.source
    torch.testing.assert_close(made[False], begun[False].round_trip, rtol=0, atol=1e-4)
    assert (made[False] - begun[False].clip.frames).abs().max() > 0.01  # which is another picture than the clip
    assert torch.equal(made[True], begun[True].clip.frames)


PLACED = (
    "sampler.start=placed",
    "mask.outline=colour",
    "reference.height_scale=null",
    "reference.heading=auto",
    "tuning=none",
    "metrics=none",
)


def begun_edit(told: list[str], folder: Path, cache: Path, **asked: Any) -> Edit:
    """The edit of ``clip`` under options, as the predict loop makes it; ``asked``: of the request."""
    with closing(Run.begin(options(*told, cache=cache), folder, show=False)) as run:
        picture = TargetImage(*read_image(told[2].partition("=")[2]))
        request = Request(**{"name": "suv", "prompt": "a red car", "images": [picture]} | asked)
        run.data.ask([request], run._inverted, run._remembered)
        (task,) = run.data.predict_dataloader()
        with torch.no_grad():
            return run.editor.predict_step(task, 0)


def test_the_target_is_put_in_its_place_before_sampling(
    clip: list[str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """METHOD 1 and 6: the mask holds the source object's outline and the target's, and what was put there is recorded."""
    with np.load(Path(clip[3].partition("=")[2]) / "truth.npz") as truth:
        object_ = torch.from_numpy(truth["source_mask"])[:, None].float()  # a network that knows nothing finds none
    monkeypatch.setattr(tave.editor, "outline", lambda frames, region: object_)
    run = train(options(*clip, *PLACED, cache=cache), tmp_path / "run", show=False)
    told = json.loads((run / "edits/suv/edit.json").read_text())
    assert 0.2 < told["pose"]["height"] < 5 and told["pose"]["mirrored"] in (True, False)
    with np.load(run / "edits/suv/soft_mask.npz") as stored:
        outline, binary = stored["outline"], stored["binary"]
    shown = object_[:, 0].numpy()
    assert (outline * shown).sum() / np.maximum(outline, shown).sum() > 0.9
    cells = torch.nn.functional.adaptive_avg_pool2d(object_, binary.shape[1:])[:, 0].numpy() >= 0.3
    assert (binary[cells] == 1).all() and cells.sum() <= binary.sum() < 3 * cells.sum()
    overrides = ["reference.height_scale=0.75", "reference.heading=mirrored"]
    again = tave.edit_clip(run, clip[2].partition("=")[2], "a red car", name="as_told", overrides=overrides, show=False)
    assert json.loads((again / "edit.json").read_text())["pose"] == {"height": 0.75, "mirrored": True}


def test_what_the_network_tells_before_sampling_is_asked_once(
    clip: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another strength takes the region and the pose that are known, and is the edit of one who knew nothing, to the bit."""
    with np.load(Path(clip[3].partition("=")[2]) / "truth.npz") as truth:
        object_ = torch.from_numpy(truth["source_mask"])[:, None].float()  # a network that knows nothing finds none
    monkeypatch.setattr(tave.editor, "outline", lambda frames, region: object_)
    told, other = [*clip, *PLACED, "reference.matte=colour"], "sampler.strength=0.8"
    train(options(*told, cache=tmp_path / "cache"), tmp_path / "first", show=False)
    unaware = train(options(*told, other, cache=tmp_path / "empty"), tmp_path / "unaware", show=False)
    for name in ("find_mask", "recognised", "painted"):
        monkeypatch.setattr(tave.editor, name, lambda *_, **__: pytest.fail("asked again"))
    again = train(options(*told, other, cache=tmp_path / "cache"), tmp_path / "again", show=False)
    for name in ("edited.mp4", "mask.mp4", "placed.mp4", "soft_mask.npz"):
        assert (again / "edits/suv" / name).read_bytes() == (unaware / "edits/suv" / name).read_bytes(), name
    stages, made = (json.loads((run / "metrics.json").read_text())["stages"] for run in (again, tmp_path / "first"))
    for stage in ("masking", "placing"):
        assert stages[stage]["seconds"] == 0 and stages[stage]["remembered"] == pytest.approx(made[stage]["seconds"])
    for changed in (
        "mask.threshold=quantile",
        "video.edits.suv.target_prompt='a green van'",
        "sampler.guidance_scale=5",
        "reference.feather=0.1",
        "seed=7",
    ):
        with pytest.raises(pytest.fail.Exception, match="asked again"):
            train(options(*told, changed, cache=tmp_path / "cache"), tmp_path / "third", show=False)


def test_words_that_are_the_same_ask_for_no_other_height(clip: list[str], cache: Path, tmp_path: Path) -> None:
    made = begun_edit([*clip, *PLACED], tmp_path, cache, prompt="a white bus driving right on a mountain road")
    assert made.pose is not None and made.pose.height == 1.0


def test_a_strength_that_leaves_no_step_to_correct_is_told(
    clip: list[str], cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    low = ("sampler.strength=0.3", "correction.steps=[0.1,0.6]", "inversion.steps=10")
    # nothing starts there without a target or in all of the picture; one in its place isn't blended unless that is asked for
    for other in ("reference=none", "mask.region=whole", "sampler.start=inverted", "seed=33", "correction=inter_frame"):
        asked = options(*clip, *PLACED, *low, other, "correction.steps=[0.1,0.6]", "tuning.steps=0", cache=cache)
        with closing(Run.begin(asked, tmp_path / other, show=False)):
            assert ("no step of correction.steps=[0.1, 0.6] is left" in caplog.text) == (other == "correction=inter_frame")


def test_frames_are_blended_where_sampling_starts_from_inverted_latents(clip: list[str], cache: Path) -> None:
    for told, blends in (
        ([], True),
        (PLACED, False),
        ([*PLACED, "correction=inter_frame"], True),
        ([*PLACED, "reference=none"], True),
        (["correction=none"], False),
    ):
        assert options(*clip, *told, cache=cache).editing.blends == blends


def test_a_height_and_a_heading_that_are_told_hold_in_a_whole_picture_too(clip: list[str], cache: Path, tmp_path: Path) -> None:
    told = ("mask.region=whole", "reference=in_context", "sampler.start=inverted")
    plain, small = (
        begun_edit([*clip, *PLACED, *told, *more], tmp_path / name, cache)
        for name, more in (("plain", []), ("small", ["reference.height_scale=0.5", "reference.heading=mirrored"]))
    )
    (one,), (other,) = plain.references, small.references
    assert one.target is not None and other.target is not None and not torch.equal(one.target, other.target)


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        (["mask.region=whole"], {}),  # which tells no place
        (["reference=none"], {}),  # which has no target to put there
        ([], {"prompt": "a white bus driving right on a mountain road", "images": None}),  # nothing to edit, nowhere to put it
    ],
    ids=["whole", "words", "nothing"],
)
def test_without_a_place_or_a_target_it_starts_as_inverted(
    told: list[str], asked: dict[str, Any], clip: list[str], cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if asked:  # the source told twice: the middle frame, as it is
        frame = read_clip(clip[1].partition("=")[2], typed_video(clip, cache)).frames
        asked |= {"images": [TargetImage(frame[len(frame) // 2])]}
        told = ["reference=as_is", "reference.frame=middle", "reference.matte=none"]
    placed, inverted = (
        begun_edit([*clip, *PLACED, *told, f"sampler.start={start}"], tmp_path / start, cache, **asked)
        for start in ("placed", "inverted")
    )
    assert torch.equal(placed.frames, inverted.frames) and placed.pose is None
    assert ("the target is put nowhere" in caplog.text) == bool(asked)


def typed_video(clip: list[str], cache: Path) -> ReadOptions:
    return options(*clip, cache=cache).video


def test_a_region_that_was_asked_for_stays_as_it_was_and_still_tells_the_place(
    clip: list[str], cache: Path, tmp_path: Path
) -> None:
    frames = read_clip(clip[1].partition("=")[2], typed_video(clip, cache)).frames
    region = torch.zeros_like(frames[:, :1])
    region[:, :, frames.shape[2] // 2 :] = 1
    made = begun_edit([*clip, *PLACED], tmp_path, cache, region=region)
    assert made.pose is not None
    cells = torch.nn.functional.adaptive_max_pool2d(region, made.mask.mask.shape[-2:])
    assert torch.equal(made.mask.mask[0], cells) and torch.equal(made.mask.binary[0], cells)


@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
def test_a_damaged_record_is_named_before_the_work(name: str, clip: list[str], cache: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"edits": ')
    with pytest.raises(StoredError, match=rf"{name}: not readable as JSON .* delete it and run again"):
        train(options(*clip, cache=cache), tmp_path, show=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoredError, match=r"run\.json"):
        tave.edit_clip(tmp_path, "car.png", "a car")


def test_an_edit_name_must_be_a_folder_name(cache: Path) -> None:
    asked = options("+video=custom", "video.path=a.mp4", "video.target_image=b.png", "video.edit=../x", *PROMPTS, cache=cache)
    with pytest.raises(OptionError, match="folder name"):
        asked.video.requests()


def test_the_door_ends_in_one_line_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = {"run": "error: nowhere.mp4", "file": f"error: hydra.run.dir={tmp_path / 'file'} can't be made a folder"}
    for name, line in told.items():
        words = [CLIP, "backbone=tiny", "video.path=nowhere.mp4", f"hydra.run.dir={tmp_path / name}"]
        ended = subprocess.run([sys.executable, "-m", "tave.train", *words], capture_output=True, text=True, timeout=120)
        assert ended.returncode == 1
        assert ended.stderr.strip().splitlines()[-1].startswith(line)
        assert "Traceback" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_lists_the_groups_that_the_door_takes() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        told = compose("train", return_hydra_config=True).hydra.help.template.splitlines()
    listed = {line.partition(":")[0] for line in told if re.match(r"[a-z/_]+: ", line)}
    assert {"backbone", "video", "video/matted", "experiment", "logger"} <= listed
    assert not {"leaderboard", "score", "set", "study", "sweep"} & listed
