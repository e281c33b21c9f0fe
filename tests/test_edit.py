"""What may be told to another edit of a tuned clip, and what stays the run's: no network is built here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

import tave
import tave.edit
from tave.cache import StoredError
from tave.config import CONF, TrainOptions, composed, parsed, typed
from tave.edit import CLIP, GROUPS, MOVABLE, asked
from tave.options import OptionError
from tave.story import quoted


def record(folder: Path, *overrides: str, backbone: str = "tiny") -> Path:
    """A run folder that holds the record alone."""
    folder.mkdir()
    cfg = composed("train", ["+video=bus_to_suv", f"backbone={backbone}", *overrides])
    (folder / "run.json").write_text(json.dumps({"config": OmegaConf.to_container(cfg, resolve=True)}))
    return folder


def options(run: Path, *overrides: str) -> TrainOptions:
    return typed(asked(run, overrides))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    own = ("sampler.fresh_noise=0.1", "correction.block=-2", "correction.steps=[0.2,1.0]", "mask.settle=0.5", "memory=8gb")
    return record(tmp_path / "run", *own, "logger=[csv,wandb]")


def test_nothing_told_is_the_run_again(run: Path) -> None:
    told = json.loads((run / "run.json").read_text())["config"]
    told["video"]["edits"] = {}
    assert OmegaConf.to_container(asked(run, [])) == told


def test_a_choice_brings_its_own_numbers_and_no_other_backbones(run: Path) -> None:
    before, made = options(run), options(run, "sampler=ddim", "correction=auto")
    assert (made.sampler.guidance_scale, made.sampler.fresh_noise) == (3.0, 0.1)
    assert (made.correction.block, made.correction.steps) == (-2, before.correction.steps)
    assert made == before
    changed = options(run, "mask=patent", "mask.dilate=3", "reference=as_is")
    assert (changed.mask.threshold, changed.mask.settle, changed.mask.dilate) == ("fixed", 0.0, 3)
    assert (changed.reference.mode, changed.reference.frame) == ("as_is", before.reference.frame)
    assert changed.sampler == before.sampler and changed.correction == before.correction


def test_a_choice_undoes_another_of_its_group(tmp_path: Path) -> None:
    run = record(tmp_path / "run", "correction=variance")
    assert options(run).correction.restore_variance
    assert not options(run, "correction=inter_frame").correction.restore_variance


@pytest.mark.parametrize("backbone", sorted(path.stem for path in (CONF / "backbone").glob("*.yaml")))
def test_the_backbones_numbers_stand_over_a_choices(tmp_path: Path, backbone: str) -> None:
    """As in the training: each backbone's run, edited under the choices that it was made with, is the run again."""
    path = ("backbone.path=elsewhere",) if backbone not in ("tiny", "roadside") else ()
    run = record(tmp_path / "run", *path, backbone=backbone)
    defaults = (
        "reference=joint",
        "mask=target_aware",
        "correction=auto",
        "sampler=ddim",
        "memory=full",
        "metrics=default",
    )
    assert options(run, *defaults, "logger=csv", "trainer=default") == options(run)


def test_a_backbone_of_ones_own_keeps_the_runs_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ModuleType("mine")
    mine.load = lambda **told: told  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", mine)
    run = record(tmp_path / "run", "backbone._target_=mine.load", "sampler.guidance_scale=4")
    made = options(run, "sampler=ddim", "correction=inter_frame")
    assert made.sampler.guidance_scale == 4 and made.correction.block == options(run).correction.block


def test_presets_and_loggers_are_replaced(run: Path) -> None:
    made = options(run, "memory=full", "logger=none", "metrics=none")
    assert (made.memory.weights, made.precision, made.logger, made.metrics.enabled) == ("full", "32-true", {}, False)
    assert options(run, "memory=16gb").memory != options(run).memory
    assert list(options(run, "logger=[csv,tensorboard]").logger) == ["csv", "tensorboard"]


def test_several_pictures_a_mask_and_a_null_are_told(run: Path) -> None:
    told = (
        "video.target_image=[a.png,b.png]",
        'video.target_prompt="a red, shiny car"',
        "video.mask=m.mp4",
        "metrics.judge=null",
    )
    made = options(run, *told, "video.edit=car")
    (entry,) = made.video.requests().values()
    assert entry.images == [("a.png", None), ("b.png", None)]
    assert (entry.target_prompt, entry.mask, made.metrics.judge) == ("a red, shiny car", "m.mp4", None)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("video.frames=5", "video.frames was decided"),
        ("video.path=/nowhere.mp4", "video.path was decided"),
        ("video.source_prompt=a cow", "video.source_prompt was decided"),
        ("+video=custom", "video was decided"),
        ("seed=5", "seed was decided"),
        ("inversion.steps=3", "inversion.steps was decided"),
        ("inflation.kv_frames=previous_current", "inflation.kv_frames was decided"),
        ("backbone.path=elsewhere", "has no such part"),
        ("mask.treshold=otsu", "mask.treshold"),
        ("+mask.treshold=otsu", "mask.treshold"),
        ("mask=otsu", "mask/otsu.*target_aware"),
        ("mask.dilate=many", "mask.dilate=many"),
        ("mask.steps=[1", r"mask\.steps=\[1"),
        ("mask.dilate", "'mask.dilate'"),
        ("mask=null", "mask=null"),
        ("~mask", "~mask"),
        ("mask.threshold=best", "mask.threshold='best' is not known"),
    ],
)
def test_what_is_decided_unknown_or_unread_is_refused_in_one_line(run: Path, override: str, told: str) -> None:
    with pytest.raises(OptionError, match=told) as caught:
        tave.edit_clip(run, "car.png", "a car", overrides=[override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["tuning.stepz=3", "backbone=nope", "video.frames=${nope}", "video.fit=[1"])
def test_tuning_refuses_in_one_line(tmp_path: Path, override: str) -> None:
    with pytest.raises(OptionError, match=r"stepz|roadside|frames|fit") as caught:
        tave.tune_clip("clip.mp4", "a bus", folder=tmp_path / "run", overrides=[override])
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["a, b=c {d}", "C:\\new\\\\x", "ends in \\", 'says "so"', 'a\\"b\\\\"', "", " "])
def test_a_quoted_value_comes_back_unchanged(text: str) -> None:
    (override,) = parsed([f"key={quoted(text)}"])
    assert override.value() == text


@pytest.mark.parametrize("stored", ["", "[]", "{}", '{"config": {"video": 3}}', '{"config": 3}', '{"config": ['])
def test_a_damaged_record_is_told_by_its_file(tmp_path: Path, stored: str) -> None:
    (tmp_path / "run.json").write_text(stored)
    with pytest.raises(StoredError, match=r"run\.json: damaged.*tune again") as caught:
        tave.edit_clip(tmp_path, "car.png", "a car")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("treshold", "otsu"), ("dilate", "many")])
def test_a_record_of_other_keys_is_told_by_file_and_key(run: Path, key: str, value: str) -> None:
    told: dict[str, Any] = json.loads((run / "run.json").read_text())
    told["config"]["mask"][key] = value
    (run / "run.json").write_text(json.dumps(told))
    with pytest.raises(StoredError, match=rf"run\.json: .*another version.*mask\.{key}"):
        asked(run, [])


def doors(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tave.edit", *words])
    tave.edit.main()


def test_the_door_reads_what_the_notebook_reads(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made: list[TrainOptions] = []
    monkeypatch.setattr(tave.edit, "edit", lambda folder, asked, overrides: made.append(asked) or [])
    told = ["sampler=ddim", "correction=variance", "video.target_image=a.png", "video.target_prompt=a car"]
    doors(monkeypatch, f"run={run}", *told)
    assert made == [options(run, *told)]
    with pytest.raises(SystemExit, match=r"^error: video\.frames was decided when the clip was tuned"):
        doors(monkeypatch, f"run={run}", "video.frames=5")


def test_help_names_all_that_is_taken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        doors(monkeypatch, "--help")
    assert not ended.value.code
    shown = capsys.readouterr().out
    for key in (*CLIP, *MOVABLE, *GROUPS):
        assert key == "video.edits" or (key in shown or f" .{key.partition('.')[2]}" in shown), (
            key
        )  # Hydra can't name new edits
