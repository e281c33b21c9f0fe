"""A run from clip to measured edit on the tiny backbone: its files, what is not made twice, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import TINY, ages, call, computed, evaluations, figures_of, options

import tave.train
from tave.cache import StoredError, read_tensors
from tave.cli import compose_options
from tave.config import OptionError
from tave.editor import Editor
from tave.files import file_digest, read_json, write_json
from tave.run import Run
from tave.train import objective, train
from tave.video import write_image

FILES = {"run.json", "metrics.json", "source.mp4", "round_trip.mp4", "edits"}
FILES |= {"tuned.safetensors", "tuned.json", "trajectory.safetensors", "SHA256SUMS"}
EDIT = {"edited.mp4", "network.mp4", "mask.mp4", "side_by_side.mp4", "side_by_side.png", "reference.png"}
EDIT |= {"soft_mask.npz", "field.npz", "edit.json", "truth", "SHA256SUMS"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(clip: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return train(options(clip, cache), tmp_path_factory.mktemp("run"), show=False)


AS_IS = ("reference.mode=as_is", "metrics.enabled=false")


@pytest.fixture(scope="module")
def as_is(run: Path, clip: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in the same cache, the target shown as it is: in its place, its mask depends on a first one's threshold."""
    return train(options(clip, cache, *AS_IS), tmp_path_factory.mktemp("as_is"), show=False)


def same_tensors(one: Path, other: Path) -> bool:
    tensors, others = read_tensors(one)[0], read_tensors(other)[0]
    return tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in tensors)


# ---- what a run leaves -----------------------------------------------------------------------------------------------


def test_a_run_leaves_all_that_it_promises(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == FILES
    assert {path.name for path in (run / "edits" / "suv").iterdir()} == EDIT
    assert not list(run.rglob(".*"))
    figures = figures_of(run)["suv"]
    promised = {"background_psnr_outside_mask", "mask_recall", "object_presence", "residue_old", "ideal_psnr_aligned"}
    assert promised | {"warp_error_object", "object_gradient_energy"} <= figures.keys()
    metrics = read_json(run / "metrics.json")
    assert metrics["metrics"].keys() == figures.keys()
    assert {"tuning", "inversion", "masking", "sampling", "decoding", "writing", "metrics"} <= computed(run)
    assert {"reconstruction_psnr", "autoencoder_psnr"} <= metrics.keys()


def test_the_record_holds_config_versions_inputs_and_keys(run: Path, clip: Path) -> None:
    record = read_json(run / "run.json")
    assert record["config"]["correction"]["enabled"] is True and record["weights"]["unet"]
    assert record["seed"] == record["config"]["seed"] == 33
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["inputs"] == {str(clip / name): file_digest(clip / name) for name in ("source.mp4", "target.png")}
    for holder in (record, read_json(run / "tuned.json"), read_json(run / "edits/suv/edit.json")):
        assert re.fullmatch("[0-9a-f]{12}", holder["key"])
    assert read_json(run / "metrics.json")["keys"].keys() == {"suv"}


@pytest.mark.parametrize("truth", [True, False])
def test_a_seed_decides_every_bit_and_the_truth_none(run: Path, clip: Path, truth: bool, tmp_path: Path) -> None:
    words = [] if truth else ["video.edits.suv.truth=null"]
    again = train(options(clip, tmp_path / "cache", *words), tmp_path / "run", show=False)
    assert (again / "edits/suv/truth").exists() == truth
    for name in ("tuned.safetensors", "trajectory.safetensors"):
        assert same_tensors(run / name, again / name)
    for name in ("edited.mp4", "mask.mp4", "soft_mask.npz", "field.npz"):
        assert (run / "edits/suv" / name).read_bytes() == (again / "edits/suv" / name).read_bytes(), name


# ---- what is already made --------------------------------------------------------------------------------------------


def test_the_same_command_again_makes_nothing(run: Path, clip: Path, cache: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(run, tmp_path / "run"))
    before, figures = ages(here), figures_of(here)
    with evaluations() as seen:
        train(options(clip, cache), here, show=False)
    assert not seen
    after = ages(here)
    rewritten = {"run.json", "metrics.json", "source.mp4", "SHA256SUMS"}
    assert {path.name for path in before if after[path] != before[path]} <= rewritten
    assert figures_of(here) == figures


@pytest.mark.parametrize(
    ("word", "again"),
    [
        ("sampler.guidance_scale=2", {"sampling"}),
        ("correction.enabled=false", {"sampling"}),
        ("mask.threshold=quantile", {"sampling"}),
        ("mask.branches=separate", {"masking", "sampling"}),
        ("inversion.condition=text", {"inversion", "reconstruction", "masking", "sampling"}),
        ("seed=34", {"tuning", "inversion", "reconstruction", "masking", "sampling"}),
    ],
)
def test_another_option_remakes_only_what_depends_on_it(
    as_is: Path, clip: Path, cache: Path, word: str, again: set[str], tmp_path: Path
) -> None:
    with evaluations() as seen:
        other = train(options(clip, cache, *AS_IS, word), tmp_path / "other", show=False)
    assert computed(other) & {"tuning", "inversion", "reconstruction", "masking", "sampling"} == again
    if again == {"sampling"}:
        assert len(seen) == 2  # steps


@pytest.mark.parametrize("word", ["video.frames=2", "tuning.lr=1e-3", "seed=1"])
def test_a_folder_of_another_clip_or_tuning_is_refused_untouched(run: Path, clip: Path, cache: Path, word: str) -> None:
    before = ages(run)
    with pytest.raises(StoredError, match=r"another clip or another tuning: give another hydra\.run\.dir"):
        train(options(clip, cache, word), run, show=False)
    assert ages(run) == before


def test_another_option_in_the_same_folder_replaces_the_edit_even_where_measuring_fails(
    run: Path, clip: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, changed = Path(shutil.copytree(run, tmp_path / "run")), options(clip, cache, "sampler.guidance_scale=1")

    def fails(*_: Any) -> None:
        raise ValueError("cannot be measured")

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="cannot be measured"):
        patched.setattr("tave.eval.score.score_run", fails)
        train(changed, here, show=False)
    assert read_json(here / "run.json")["config"]["sampler"]["guidance_scale"] == 1
    assert read_json(here / "edits/suv/edit.json")["options"]["sampler"]["guidance_scale"] == 1
    assert "suv" not in figures_of(here)  # those were of the edit before
    with evaluations() as seen:
        train(changed, here, show=False)
    assert not seen and figures_of(here)["suv"]["ideal_psnr"] != figures_of(run)["suv"]["ideal_psnr"]
    assert same_tensors(run / "tuned.safetensors", here / "tuned.safetensors")


@pytest.mark.slow  # several runs
def test_a_stopped_tuning_continues_and_equals_an_uninterrupted_one(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM, as a cluster sends it: exit code 143, and the same command continues at the step where it stopped."""
    given = ["video=bus_to_suv", f"video.path={clip / 'source.mp4'}", "video.edits={}", "video.frames=2"]

    def command(name: str) -> int:
        folders = [f"hydra.run.dir={tmp_path / name}", f"cache={tmp_path / 'cache' / name}"]
        return call(tave.train.main, *given, *TINY, "tuning.steps=8", "logger=none", *folders)

    steps: list[int] = []
    training_step = Editor.training_step

    def stopping(self: Editor, *rest: Any) -> Any:
        steps.append(self.global_step)
        if steps == [0, 1, 2]:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Editor, "training_step", stopping)
        assert command("stopped") == 143
        assert steps == [0, 1, 2]
        assert command("stopped") == 0
    assert steps[3:] in ([*range(2, 8)], [*range(3, 8)])
    assert capsys.readouterr().out.split() == [str(tmp_path / "stopped")]
    assert command("whole") == 0
    assert same_tensors(tmp_path / "stopped/tuned.safetensors", tmp_path / "whole/tuned.safetensors")


# ---- what is refused or warned of before the work --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["video.path=nowhere.mp4"], r"nowhere\.mp4"),
        (["video.frames=99"], r"source\.mp4.*frames"),
        (["video.edits.suv.target_image=nowhere.png"], r"nowhere\.png"),
        (["video.edits.suv.target_image={folder}/clear.png"], r"clear\.png: the target image's alpha is empty"),
        (["video.edits.suv.matte={folder}/small.png"], r"target\.png: .*matte is 10x10"),
        (["video.edits.suv.mask={folder}/black.png"], r"black\.png: the mask is empty"),
        (["video.edits.suv.object=1"], r"video\.object .*give that too"),
        (["video.edits.suv.truth=/nowhere"], r"truth=/nowhere has no truth\.npz"),
        (["correction.block=7"], r"correction\.block=7 is out of range: set it between -3 and 2"),
        (["trainer.accelerator=nonsense"], r"^trainer: .*nonsense"),
        (["metrics.judge=/nowhere"], r"metrics\.judge=/nowhere holds no classes\.json"),
        (["metrics.objective=residue", "metrics.enabled=false"], r"objective=residue, but nothing is measured"),
    ],
)
def test_a_mistake_is_refused_in_one_line_before_anything_is_made(
    clip: Path, words: list[str], message: str, tmp_path: Path
) -> None:
    write_image(tmp_path / "small.png", torch.ones(3, 10, 10))
    write_image(tmp_path / "black.png", -torch.ones(3, 10, 10))
    Image.new("RGBA", (32, 32)).save(tmp_path / "clear.png")
    given = options(clip, tmp_path / "cache", *(word.format(folder=tmp_path) for word in words))
    with pytest.raises(ValueError, match=message) as refused:
        train(given, tmp_path / "run", show=False)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        ([], []),
        (["video.source_prompt=a horse on a road"], [r"'a horse on a road' names nothing .*\(bus, suv\)"]),
        (["video.edits.suv.truth=null"], [r"only knows drawings of bus, suv; .* backbone=sd21_unclip_small"]),
    ],
    ids=["drawn", "unknown noun", "footage"],
)
def test_what_the_backbone_does_not_know_is_noted_before_the_tuning(
    clip: Path, words: list[str], notes: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = options(clip, tmp_path, "backbone.knows=[bus,suv]", *words)
    Run.begin(given, tmp_path / "run", show=False).close()
    assert len(caplog.messages) == len(notes)
    assert all(re.search(note, message) for note, message in zip(notes, caplog.messages, strict=True))


def test_the_shipped_backbone_names_what_it_knows() -> None:
    assert {"bus", "suv", "car"} <= {*compose_options("train", ["video=bus_to_suv"]).backbone.knows}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the preset suits this machine")
def test_a_gpus_preset_on_a_cpu_is_warned_of(clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run.begin(options(clip, tmp_path, "memory=24gb"), tmp_path / "run", show=False).close()
    assert "made for a GPU" in caplog.text and "memory=full" in caplog.text


def test_a_search_gets_the_mean_of_its_figure(clip: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"edits": {"suv": {"residue": 0.25, "note": "x"}}})
    assert objective(options(clip, tmp_path, "metrics.objective=residue"), tmp_path) == 0.25
    assert objective(options(clip, tmp_path), tmp_path) is None
    with pytest.raises(OptionError, match=r"metrics\.objective=nothing.*residue"):
        objective(options(clip, tmp_path, "metrics.objective=nothing"), tmp_path)
