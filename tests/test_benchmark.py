"""A benchmark of two small cases: methods and controls side by side, resumable, and what fails costs nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import TINY, ages, call, evaluations, figures_of, frames_of

import tave.benchmark
import tave.controls
from tave.benchmark import benchmark
from tave.cli import compose_options
from tave.config import BenchmarkOptions, MethodOptions, OptionError
from tave.files import read_json, write_json
from tave.keys import quoted
from tave.record import changed_metrics
from tave.roadside.cases import NAMED
from tave.roadside.files import write_case
from tave.video import write_image

METHODS = ["tave", "no_correction", "source_unchanged", "frozen_first_frame"]
SHARING = ["tave", "source_unchanged", "frozen_first_frame"]  # one mask
CASES = ["larger_0", "smaller_0"]


def listed(key: str, *values: str) -> str:
    return f"{key}=[{','.join(quoted(value) for value in values)}]"


def words(folder: Path, *more: str) -> list[str]:
    small = ["set=small", "set.size=32", f"folder={folder}", listed("overrides", *TINY, "inversion.gate=off")]
    return [*small, listed("only", *CASES), listed("methods", *METHODS), *more]


def drawn(folder: Path, *more: str) -> BenchmarkOptions:
    return compose_options("benchmark", words(folder, *more))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("benchmark")
    assert benchmark(drawn(folder), show=False) == []
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The benchmark's first case in another place."""
    shutil.copytree(made / CASES[0], tmp_path / CASES[0])
    return tmp_path


def masks_of(run: Path) -> list[np.ndarray]:
    return [np.load(run / "edits" / name / "soft_mask.npz")["mask"] for name in SHARING]


@pytest.mark.slow  # whole cases
def test_every_case_has_every_method_labelled_and_measured(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {*CASES, "cases", "cache"}
    for case in CASES:
        figures = figures_of(made / case)
        assert figures.keys() == {*METHODS}
        for name in METHODS:
            assert isinstance(figures[name]["ideal_psnr_aligned"], float)
            label = read_json(made / case / "edits" / name / "edit.json")["benchmark"]
            assert (label["case"], label["method"], label["seed"]) == (case, name, 33)
            assert case.rpartition("_")[0] in label["group"]


@pytest.mark.slow  # whole cases
def test_the_same_command_makes_only_what_is_missing(made: Path, copy: Path) -> None:
    """As if killed before a control, and between an edit and its figures."""
    run = copy / CASES[0]
    shutil.rmtree(run / "edits/source_unchanged")
    before = ages(run)
    with changed_metrics(run) as metrics:
        del metrics["edits"]["no_correction"], metrics["keys"]["no_correction"]
    with evaluations() as seen:
        assert benchmark(drawn(copy, listed("only", CASES[0])), show=False) == []
    assert not seen
    changed = {path.name for path, at in before.items() if ages(run)[path] != at}
    assert changed <= {"run.json", "metrics.json", "source.mp4", "SHA256SUMS"}
    assert figures_of(run) == figures_of(made / CASES[0])
    files = [place / CASES[0] / "edits/source_unchanged/edited.mp4" for place in (made, copy)]
    assert torch.equal(*map(frames_of, files))


@pytest.mark.slow  # whole cases
def test_another_choice_remakes_the_edit_and_the_controls_that_follow_from_it(made: Path, copy: Path) -> None:
    run = copy / CASES[0]
    tuned = (run / "tuned.safetensors").stat().st_mtime_ns
    wider = f"define.tave={{overrides: [{quoted('mask.dilate=0.3')}]}}"
    assert benchmark(drawn(copy, listed("only", CASES[0]), wider), show=False) == []
    assert (run / "tuned.safetensors").stat().st_mtime_ns == tuned
    masks = masks_of(run)
    assert all(np.array_equal(masks[0], mask) for mask in masks)
    assert masks[0].sum() > masks_of(made / CASES[0])[0].sum()
    before, after = (figures_of(place / CASES[0]) for place in (made, copy))
    assert all(after[name]["mask_area_ratio"] > before[name]["mask_area_ratio"] for name in SHARING)


@pytest.mark.slow  # two processes, each with its imports
def test_workers_make_the_same_files_and_seeds_are_runs_of_their_own(made: Path, tmp_path: Path) -> None:
    assert benchmark(drawn(tmp_path, "workers=2", "seeds=[33,34]"), show=False) == []
    for case in CASES:
        assert read_json(tmp_path / f"{case}-seed34/run.json")["seed"] == 34
        for name in METHODS:
            edits = [place / case / "edits" / name for place in (made, tmp_path)]
            assert torch.equal(*(frames_of(edit / "edited.mp4") for edit in edits))
        assert figures_of(tmp_path / case) == figures_of(made / case)


@pytest.mark.slow  # whole cases
def test_what_fails_is_listed_and_the_rest_continues(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / CASES[0] / "edits/frozen_first_frame")
    make, tune = tave.controls.make, tave.benchmark.tune

    def broken(name: str, *rest: Any) -> None:
        if name == "frozen_first_frame":
            raise RuntimeError("out of\nmemory")
        make(name, *rest)

    def unreadable(job: tave.benchmark.Job) -> None:
        if job.case.name == CASES[1]:
            raise OptionError("no video")
        tune(job)

    with monkeypatch.context() as patched:
        patched.setattr(tave.controls, "make", broken)
        patched.setattr(tave.benchmark, "tune", unreadable)
        assert call(tave.benchmark.main, *words(copy)) == 1
    failed = [read_json(copy / case / "failed.json")["failed"] for case in CASES]
    expected = {"case": CASES[0], "seed": 33, "method": "frozen_first_frame", "error": "RuntimeError: out of memory"}
    assert failed == [[expected], [{"case": CASES[1], "seed": 33, "method": "tuning", "error": "no video"}]]
    assert {path.name for path in (copy / CASES[0] / "edits").iterdir()} == {*METHODS} - {"frozen_first_frame"}
    printed = capsys.readouterr()
    assert printed.out.split() == [str(copy)]
    for line in (
        f"{CASES[0]}, seed 33, frozen_first_frame: RuntimeError: out of memory",
        f"{CASES[1]}, seed 33, tuning: no video",
    ):
        assert line in printed.err
    assert "error: 2 failed" in printed.err
    assert benchmark(drawn(copy, listed("only", CASES[0])), show=False) == []
    assert not (copy / CASES[0] / "failed.json").exists() and (copy / CASES[1] / "failed.json").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("methods=[best]", r"best.*choose from tave, .*per_frame"),
        ("define.tave={experiment: nowhere}", r"define\.tave\.experiment=nowhere"),
        ("define.tave={overrides: ['tuning.steps=3']}", r"define\.tave changes tuning"),
        ("define.tave={overrides: ['mask.threshhold=otsu']}", r"mask\.threshhold"),
        ("overrides=['tuning.stepz=1']", r"tuning\.stepz"),
        ("overrides=['tuning.steps=-1']", r"tuning\.steps"),
        ("only=[nowhere]", r"only=\['nowhere'\]: no such case"),
        ("only=[larger_0,nowhere]", r"only=\['nowhere'\]: no such case"),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_is_made(word: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        benchmark(drawn(tmp_path, word), show=False)
    assert not [path for path in tmp_path.iterdir() if path.name != "cases"]


def test_a_set_without_a_case_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_json(tmp_path / "set/cases.json", {"cases": []})
    given = ["set=folder", f"set.folder={tmp_path / 'set'}", f"folder={tmp_path / 'out'}"]
    with pytest.raises(OptionError, match="lists no case"):
        benchmark(compose_options("benchmark", given), show=False)


@pytest.mark.slow  # whole cases
def test_a_set_of_the_users_own_is_edited_and_measured_by_its_annotations(tmp_path: Path) -> None:
    home = tmp_path / "set"
    write_case(NAMED["bus_to_suv"], home, 64)
    masks = torch.from_numpy(np.load(home / "truth/truth.npz")["source_mask"])
    for number, mask in enumerate(masks):
        write_image(home / f"annotations/{number:05}.png", mask.float().expand(3, -1, -1) * 2 - 1)
    entry = {"source_prompt": "a white bus", "target_prompt": "a red suv", "target_image": "target.png"}
    entry |= {"name": "bus", "path": "source.mp4", "annotations": "annotations", "groups": "smaller"}
    (home / "cases.json").write_text(json.dumps([entry]))
    given = ["set=folder", f"set.folder={home}", f"folder={tmp_path}"]
    given.append("methods=[tave,oracle_mask,pasted_true_pose]")  # the last needs an answer that no footage has
    given.append(listed("overrides", *TINY, "video.frames=4", "video.stride=2"))
    assert benchmark(compose_options("benchmark", given), show=False) == []
    found = figures_of(tmp_path / "bus")
    assert found.keys() == {"tave", "oracle_mask"}
    assert found["oracle_mask"]["mask_recall"] == 1  # the annotated bus, and more only by the cells that it touches
    assert found["oracle_mask"]["mask_iou_source"] > 0.5
    assert found["tave"].get("ideal_psnr_aligned") is None  # nobody knows the right edit
    label = read_json(tmp_path / "bus/edits/tave/edit.json")["benchmark"]
    assert label == {"case": "bus", "group": ["smaller"], "seed": 33, "method": "tave"}
    assert read_json(tmp_path / "bus/run.json")["size"] == [4, 3, 32, 32]


def test_no_two_runs_share_a_folder_and_none_leaves_it(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="larger_0 would hold two runs"):
        benchmark(drawn(tmp_path, "seeds=[33,33]"), show=False)
    named = replace(drawn(tmp_path), define={"../x": MethodOptions()}, methods=["../x"])
    with pytest.raises(OptionError, match=r"'\.\./x' can't be a folder name"):
        benchmark(named, show=False)
