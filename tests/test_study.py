"""The studies of conf/experiment: each can be run by one command, goes on where it stopped, and is summarised from files."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from eval.records import RunError
from eval.study import StudyOptions, study
from eval.sweep import read_sweep
from tave.config import CONF, typed
from tave.files import file_digest
from tave.roadside import cases
from tave.run import input_digests
from tave.train import _finished

SEARCHES = sorted((CONF / "experiment").glob("optuna_*.yaml"))
FILES = sorted((CONF / "experiment").glob("*.yaml"))
STUDIES = [path for path in FILES if "sweeper" in path.read_text() and path not in SEARCHES]
EXPECTED = {
    *("blend_weights", "mask_threshold", "mask_fixed", "mask_quantile", "mask_branches", "mask_steps", "mask_union"),
    *("mask_guidance", "reference", "correction", "correction_on_off", "trainables", "tuning_steps", "st_attention"),
    *("inversion", "guidance", "image_guidance", "confine", "image_noise", "background", "reference_near", "agreement"),
    *("reference_several", "reference_matte", "strength", "pose", "mask_outline"),
}


def jobs(path: Path) -> list[list[str]]:
    """The overrides of every job that a study's sweep makes."""
    params = OmegaConf.load(path).hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return BasicSweeper.split_arguments(parsed, None)[0]


def test_there_is_a_file_for_each_study() -> None:
    assert {path.stem for path in STUDIES} == EXPECTED


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_job_of_a_study_composes_and_its_cost_is_told(path: Path) -> None:
    told, made = path.read_text(), jobs(path)
    cost = re.search(r"^# Cost: (\d+) runs", told, re.MULTILINE)
    assert cost and int(cost.group(1)) == len(made)
    assert "?" in told.splitlines()[1]  # a study asks something
    assert len({tuple(job) for job in made}) == len(made)
    seeds = [word for word in made[0] if word.startswith("seed=")]
    once = [job for job in made if job[0] == made[0][0] and {*seeds} <= {*job}]  # every combination, of one clip and seed
    seen = set()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for job in once:
            seen.add(str(typed(compose("train", [f"experiment={path.stem}", *job]))))
    assert len(seen) == len(once)  # no value is said twice


def test_every_clip_of_the_studies_is_there() -> None:
    clips = sorted({word for path in STUDIES for job in jobs(path) for word in job if word.startswith("+video=")})
    assert len(clips) > 8
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for clip in clips:
            (entry,) = typed(compose("train", [clip])).video.requests().values()
            assert all(Path(image).is_file() for image, _ in entry.images) and Path(str(entry.truth)).is_dir()


@pytest.mark.parametrize("name", ["blend_weights", "agreement", "correction", "correction_on_off"])
def test_a_study_of_the_blend_blends(name: str) -> None:
    """A target in its place is sampled in the last steps alone, which the blend's own part of the schedule may miss."""
    every = jobs(CONF / "experiment" / f"{name}.yaml")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for job in (every[0], every[-1]):  # of which none is its row without a correction
            editing = typed(compose("train", [f"experiment={name}", *job])).editing
            assert editing.blends and not editing.places


@pytest.mark.parametrize("name", cases.STUDIED)
def test_further_pictures_of_the_target_are_of_the_clips_own_place_and_of_a_third(name: str) -> None:
    case, folder = cases.NAMED[name], CONF.parent / "tave/roadside/clips" / name
    assert not case.alpha and len({case.image_place, case.source.place, cases.third_place(case)}) == 3
    for file, place in (("target_same_place.png", case.source.place), ("target_third_place.png", cases.third_place(case))):
        with Image.open(folder / file) as shipped:
            assert np.array_equal(np.asarray(shipped), np.asarray(cases.photographed(case, place)))
    with Image.open(folder / "target_matte.png") as matte, Image.open(folder / "target.png") as shown:
        assert matte.size == shown.size and np.array_equal(np.asarray(matte), np.asarray(cases.target_matte(case)))


# ---- a sweep goes on -------------------------------------------------------------------------------------------------


@pytest.mark.slow  # processes of their own, each with its imports
def test_a_sweep_makes_only_what_is_not_finished(tmp_path: Path) -> None:
    given = ["experiment=blend_weights", "+video=bus_to_suv", "correction.weights=[0,1,0],[0.5,0,0.5]"]
    small = ["backbone=tiny", "metrics.judge=null", "tuning.steps=1", "inversion.steps=2"]
    folders = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "cache=${hydra:sweep.dir}/cache"]
    command = [sys.executable, "-W", "ignore", "-m", "tave.train", "-m", *given, *small, *folders]

    def sweep() -> dict[Path, int]:
        subprocess.run(command, check=True, capture_output=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
        made = list((tmp_path / "sweep").glob("video-*/*"))
        return {path: path.stat().st_mtime_ns for path in made}

    first = sweep()
    runs = sorted({path.parent for path in first})
    assert len(runs) == 2
    assert sweep() == first
    (runs[1] / "run.json").unlink()  # killed before its end
    again = sweep()
    assert {path.parent for path, age in first.items() if again[path] != age} == {runs[1]}
    readme = study(StudyOptions(str(tmp_path / "sweep"), str(tmp_path / "out"), metrics=["reconstruction_psnr"]))
    told = readme.read_text()
    assert "experiment=blend_weights" in told and "How much of its neighbours" in told
    assert "weights=[0.0, 1.0, 0.0]" in told and "weights=[0.5, 0.0, 0.5]" in told


def test_new_weights_in_the_old_folder_make_a_run_unfinished(tmp_path: Path) -> None:
    weights, run = tmp_path / "backbone" / "unet" / "weights.safetensors", tmp_path / "run"
    weights.parent.mkdir(parents=True)
    run.mkdir()
    weights.write_bytes(b"old")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = ["+video=custom", "video.path=a.mp4", "video.source_prompt=bus", f"backbone.path={tmp_path / 'backbone'}"]
        cfg = compose("train", given)
        relogged = compose("train", [*given, "logger=[csv,wandb]", "metrics.objective=residue"])
    config, other = (OmegaConf.to_container(found, resolve=True) for found in (cfg, relogged))
    told = {"config": config, "weights": {"unet/weights.safetensors": file_digest(weights)}}
    (run / "run.json").write_text(json.dumps(told))
    (run / "metrics.json").write_text("{}")
    assert _finished(typed(cfg), run, config)  # type: ignore[arg-type]
    assert _finished(typed(relogged), run, other)  # type: ignore[arg-type] - who is told of it changes nothing
    assert not _finished(typed(cfg), run, {**config, "seed": 34})  # type: ignore[dict-item]
    weights.write_bytes(b"new")
    assert not _finished(typed(cfg), run, config)  # type: ignore[arg-type]


@pytest.mark.parametrize("changed", ["clip/0.png", "target.png", "matte.png", "mask/0.png"])
def test_a_changed_input_makes_a_run_unfinished(changed: str, tmp_path: Path) -> None:
    """Clips and masks may be folders; what an older record doesn't tell of contradicts nothing."""
    run = tmp_path / "run"
    files = [tmp_path / name for name in ("clip/0.png", "target.png", "matte.png", "mask/0.png")]
    for file in (*files, run / "edits/a/edit.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("old")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = [f"video.{key}={tmp_path / at}" for key, at in (("path", "clip"), ("mask", "mask"), ("matte", "matte.png"))]
        named = [f"video.target_image={tmp_path / 'target.png'}", "video.target_prompt=car", "video.edit=a"]
        cfg = compose("train", ["+video=custom", "video.source_prompt=bus", "metrics=none", *given, *named])
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    told = {"config": config, "inputs": input_digests(typed(cfg))}
    assert len(told["inputs"]) == 4
    (run / "run.json").write_text(json.dumps(told))
    (run / "metrics.json").write_text("{}")
    assert _finished(typed(cfg), run, config)
    (tmp_path / changed).write_text("new")
    assert not _finished(typed(cfg), run, config)
    (run / "run.json").write_text(json.dumps({"config": config}))
    assert _finished(typed(cfg), run, config)


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_a_search_returns_the_best_of_what_it_tried(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="tave[optuna] is not installed")
    small = [
        "backbone=tiny",
        "metrics.judge=null",
        "metrics.objective=warp_error_in_mask",
        "tuning.steps=1",
        "inversion.steps=2",
    ]
    folders = [f"hydra.sweep.dir={tmp_path / 'sweep'}", f"cache={tmp_path / 'cache'}", "hydra.sweeper.n_trials=2"]
    command = [sys.executable, "-W", "ignore", "-m", "tave.train", "-m", f"experiment={path.stem}", *small, *folders]
    subprocess.run(command, check=True, capture_output=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    runs = [json.loads(file.read_text())["edits"] for file in (tmp_path / "sweep").rglob("metrics.json")]
    assert len(runs) == 2
    best = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert best.best_value == pytest.approx(max(run["suv"]["warp_error_in_mask"] for run in runs))


# ---- its summary -----------------------------------------------------------------------------------------------------


def written(folder: Path, case: str, seed: int, guidance: float, figures: dict[str, Any], **more: Any) -> None:
    about = {key: {"id": f"{key}/a", "higher_is_better": key == "good", "unit": "-"} for key in figures}
    config = {"video": {"name": case}, "seed": seed, "sampler": {"guidance_scale": guidance, "feather": 2}, "cache": case}
    run = folder / f"{case}-{seed}-{guidance}"
    run.mkdir(parents=True)
    record = {"config": config, "seed": seed, "commit": "abc", "weights": {"unet": "w"}, "hardware": {"threads": 2}} | more
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.json").write_text(json.dumps({"edits": {"x": figures}, "metrics": more.get("told", about)}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for case, offset in (("bus", 0.0), ("car", 10.0)):
        for seed in (1, 2):
            written(tmp_path / "s", case, seed, 2.0, {"good": offset + seed, "bad": 1.0})
            written(tmp_path / "s", case, seed, 10.0, {"good": offset + seed + 1, "bad": None})
    return tmp_path / "s"


def test_means_are_over_cases_and_the_spread_is_from_seed_to_seed(sweep: Path, tmp_path: Path) -> None:
    readme = study(StudyOptions(str(sweep), str(tmp_path / "out"), metrics=["good", "bad", "nobodys"]))
    told = json.loads((tmp_path / "out" / "study.json").read_text())
    assert told["axes"] == ["sampler.guidance_scale"]
    (low, high) = (row for row in told["rows"] if row["metric"] == "good")
    assert (low["value"], high["value"]) == ("guidance_scale=2.0", "guidance_scale=10.0")  # as numbers, not as words
    assert low["mean"] == pytest.approx((1.5 + 11.5) / 2) and low["cases"] == {"bus": 1.5, "car": 11.5}
    assert low["seeds_sd"] == pytest.approx(math.sqrt(0.5)) and low["n"] == 4
    assert "**7.5 ± 0.71**" in readme.read_text()
    assert [row["value"] for row in told["rows"] if row["metric"] == "bad"] == ["guidance_scale=2.0"]
    assert (tmp_path / "out" / "figure.png").stat().st_size > 1000


def test_what_people_wrote_is_kept(sweep: Path, tmp_path: Path) -> None:
    asked = StudyOptions(str(sweep), str(tmp_path / "out"), metrics=["good"])
    readme = study(asked)
    readme.write_text(readme.read_text().replace("Not written yet.", "Guidance helps.\n\nUntil it doesn't."))
    assert study(asked).read_text().endswith("## What was learnt\n\nGuidance helps.\n\nUntil it doesn't.\n")


def test_the_picture_is_an_axis_within_a_clip_and_not_between_clips(tmp_path: Path) -> None:
    def shown(case: str, seed: int, pictures: Any) -> None:
        video = {"name": case, "edits": {"x": {"target_image": pictures}}}
        written(tmp_path, case, seed, 2.0, {"good": float(seed)}, config={"video": video})

    shown("bus", 1, "clips/bus/a.png")
    shown("car", 1, "clips/car/b.png")
    assert read_sweep(tmp_path).axes == []
    shown("bus", 2, ["clips/bus/a.png", "clips/bus/c.png"])
    sweep = read_sweep(tmp_path)
    assert sweep.axes == ["video.target_image"]
    assert sweep.values == ["target_image=a.png", "target_image=a.png+c.png", "target_image=b.png"]


def test_edits_of_one_run_are_cases_of_their_own(tmp_path: Path) -> None:
    written(tmp_path, "bus", 1, 2.0, {"good": 1.0})
    (metrics,) = tmp_path.rglob("metrics.json")
    told = json.loads(metrics.read_text())
    metrics.write_text(json.dumps(told | {"edits": {"car": {"good": 1.0}, "van": {"good": 2.0}}}))
    assert {outcome.case for outcome in read_sweep(tmp_path).outcomes} == {"bus/car", "bus/van"}


def test_clips_can_be_chosen_by_name(sweep: Path) -> None:
    assert {outcome.case for outcome in read_sweep(sweep, "b*").outcomes} == {"bus"}


def test_numbers_of_two_kinds_and_two_backbones_are_not_mixed(sweep: Path) -> None:
    other = {"good": {"id": "good/b", "higher_is_better": True, "unit": "-"}}
    written(sweep / "more", "van", 1, 2.0, {"good": 1.0}, told=other)
    with pytest.raises(RunError, match="good/b"):
        read_sweep(sweep)
    with pytest.raises(RunError, match="no measured run"):
        read_sweep(sweep, "nobody")
    written(sweep / "most", "bike", 1, 2.0, {"good": 1.0}, weights={"unet/diffusion_pytorch_model.safetensors": "v"})
    with pytest.raises(RunError, match="UNets v, w"):
        read_sweep(sweep, "b*")
