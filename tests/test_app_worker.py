"""A job through the ordinary entry points: what it tells, what runs again, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, call, evaluations, frames_of, of_clip

from tave.app import batch
from tave.app.check import Setting, prepare
from tave.app.job import Job
from tave.app.plan import learn, measured, note
from tave.app.preview import heated
from tave.app.worker import Child, perform
from tave.config import LimitOptions, OptionError
from tave.files import read_json
from tave.record import view_note
from tave.video import write_image, write_video

QUICK = [*TINY, "metrics.enabled=false", "logger=none"]


@pytest.fixture(scope="module")
def run(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Mapping[str, Any]]]:
    """A finished job's folder, and its events. Not to be changed by a test that does not restore it."""
    folder, events = tmp_path_factory.mktemp("job"), list[Mapping[str, Any]]()
    words = [*of_clip(clip), *QUICK, f"cache={folder / 'cache'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert perform({"words": words, "run": "run", "tuned": False}, events.append) == ["suv"]
    return folder, events


def test_a_job_tells_its_stages_and_shows_the_soft_map_before_sampling(
    run: tuple[Path, list[Mapping[str, Any]]],
) -> None:
    folder, events = run
    ends = list(dict.fromkeys(event["stage"] for event in events if event.get("over")))
    assert ends == ["encoding", "tuning", "inversion", "reconstruction", "masking", "sampling", "decoding", "writing"]
    soft = events.index({"file": "soft"})
    assert not any(event.get("stage") == "sampling" for event in events[:soft])
    last = {event["stage"]: event for event in events if event.get("over")}
    assert last["tuning"]["done"] == last["tuning"]["total"] == 2 and last["sampling"]["peak_mb"] > 0
    shape = frames_of(folder / "run/source.mp4").shape
    for name in ("source", "edited", "mask", "soft"):
        assert frames_of(folder / "web" / f"{name}.mp4").shape == shape


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        (["mask.threshold=fixed", "mask.fixed=0.3"], {"sampling"}),
        (["mask.threshold=quantile", "mask.quantile=0.6"], {"sampling"}),
        (["sampler.guidance_scale=2"], {"sampling"}),
        (["correction.enabled=false"], {"sampling"}),
        (["video.edits.suv.target_prompt=a red bus on a road"], {"masking", "sampling"}),
    ],
)
def test_only_what_depends_on_a_change_runs_again(
    run: tuple[Path, list[Mapping[str, Any]]],
    clip: Path,
    changed: list[str],
    again: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another threshold costs no evaluation of the network before sampling, also with the target shown in its place."""
    folder, _ = run
    monkeypatch.chdir(folder)
    events: list[Mapping[str, Any]] = []
    target = [f"video.edits.suv.target_image={clip / 'target.png'}"]
    target += [] if "prompt" in changed[0] else ["video.edits.suv.target_prompt=a red suv on a mountain road"]
    words = [*target, *changed, "logger=none", f"cache={folder / 'cache'}"]
    with evaluations() as seen:
        perform({"words": words, "run": "run", "tuned": True}, events.append)
    steps = {"tuning", "inversion", "reconstruction", "masking", "sampling"}
    assert {event["stage"] for event in events if event.get("stage") in steps} == again
    if again == {"sampling"}:
        assert len(seen) == 2  # the steps of sampling, both branches in a batch


@pytest.mark.slow
def test_cancelling_ends_within_a_step_and_the_same_job_goes_on(clip: Path, tmp_path: Path) -> None:
    words = [*of_clip(clip), *QUICK, "tuning.steps=5000", f"cache={tmp_path / 'cache'}"]
    child, seen, cancelled = Child(tmp_path, words, "run", tuned=False), list[Mapping[str, Any]](), list[bool]()

    def send(event: Mapping[str, Any]) -> None:
        if event.get("stage") == "tuning" and event["done"] > 0 and not cancelled:
            cancelled.append(True)  # not at the first step: a fast one is too soon after the start to be reported
            child.cancel()
        seen.append(event)

    assert child.wait(send) == 143
    assert seen[-1]["stage"] == "tuning" and seen[-1]["done"] < 200
    assert list((tmp_path / "cache").glob("tuned-*/last.ckpt"))  # from which the same job continues
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


@pytest.mark.slow
def test_a_job_ends_with_its_parent_and_tells_a_mistake_in_one_line(clip: Path, tmp_path: Path) -> None:
    child = Child(tmp_path, [*of_clip(clip), *QUICK, "video.start=999"], "run", tuned=False)
    events: list[Mapping[str, Any]] = []
    assert child.wait(events.append) == 1
    assert (
        "so video.start=999 is past its end; set it below 8" in events[-1]["error"] and "\n" not in events[-1]["error"]
    )
    child = Child(tmp_path, [*of_clip(clip), *QUICK, "tuning.steps=5000", f"cache={tmp_path}"], "run", tuned=False)
    assert child._process.stdin is not None and child._process.stdout is not None
    with child._process.stdout:
        child._process.stdin.close()
        assert child._process.wait(300) in (143, -signal.SIGTERM)


# ---- preparing -------------------------------------------------------------------------------------------------------


def own(clip: Path, **more: Any) -> tuple[Job, dict[str, str]]:
    files = {"video.path": str(clip / "source.mp4"), "video.target_image": str(clip / "target.png")}
    values = {**files, "video.source_prompt": "a white bus", "video.target_prompt": "a red suv", **more}
    return Job(backbone="tiny", values=values), files


def test_one_outline_is_the_region_of_every_frame_only_if_the_user_says_so(clip: Path, tmp_path: Path) -> None:
    picture = torch.full((3, 32, 32), -1.0)
    picture[:, 8:20, 4:16] = 1.0
    write_image(tmp_path / "outline.png", picture)
    job, files = own(clip)
    files["video.mask"] = str(tmp_path / "outline.png")
    at = Setting(str(tmp_path), "cache", str(tmp_path))
    values = {**job.values, "video.mask": "outline.png"}
    with pytest.raises(OptionError, match="is one picture: give a mask of every frame, or mask_stays=true"):
        prepare(Job(backbone="tiny", values=values), files, at)
    made = prepare(Job(backbone="tiny", values=values, mask_stays=True), files, at)
    assert "masking" not in {stage.name for stage in made.plan.stages}


def test_a_job_is_checked_in_the_words_of_the_command_line(clip: Path, tmp_path: Path) -> None:
    at = Setting(str(tmp_path), "cache", str(tmp_path))
    for more, line in {
        ("video.frames", 9): "has 8 frames, but video.frames=9",
        ("video.width", 33): "video.width=33 is not a multiple of 8: set 32 or 40",
    }.items():
        with pytest.raises(ValueError, match=line):
            prepare(*own(clip, **dict([more])), at)
    made = prepare(*own(clip), at)
    assert made.plan.frames == 8 and [stage.steps for stage in made.plan.stages][:3] == [1, 4, 4]


@pytest.mark.parametrize(
    ("size", "given", "line"),
    [
        (
            (16, 256),
            {"video.width": 64, "video.height": None},
            "video.height=1024 is out of range: set it between 1 and 64",
        ),
        ((256, 16), {"video.height": 64, "video.width": None}, "video.width=1024 is out of range"),
        ((128, 128), {"video.width": None, "video.height": None}, "video.width=128 is out of range"),
        (
            (512, 16),
            {"video.width": 64, "video.height": 64},
            "would be looked at in 1024x32 px, which is more than 64x64",
        ),
    ],
)
def test_the_limit_holds_for_the_size_that_results(
    size: tuple[int, int], given: dict[str, Any], line: str, clip: Path, tmp_path: Path
) -> None:
    write_video(tmp_path / "odd.mp4", torch.zeros(2, 3, size[1], size[0]), 8)
    job, files = own(clip, **given)
    files["video.path"] = str(tmp_path / "odd.mp4")
    at = Setting(str(tmp_path), "cache", str(tmp_path))
    with pytest.raises(OptionError, match=re.escape(line)):
        prepare(job, files, at, LimitOptions(side=64))


def test_null_frames_are_all_up_to_the_limit(clip: Path, tmp_path: Path) -> None:
    job, files = own(clip, **{"video.frames": None})
    at = Setting(str(tmp_path), "cache", str(tmp_path))
    assert prepare(job, files, at, LimitOptions(frames=3)).plan.frames == 3
    assert prepare(job, files, at).plan.frames == 8


def test_a_first_look_runs_as_it_was_planned_and_is_learnt(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip that is larger than the network's frames: its object is looked for before the stages that follow."""
    monkeypatch.chdir(tmp_path)
    frames = frames_of(clip / "source.mp4").repeat_interleave(3, -1).repeat_interleave(3, -2)
    write_video(tmp_path / "large.mp4", frames, 8, crf=4)
    job, files = own(clip, **{"tuning.steps": 2, "inversion.steps": 2})
    files["video.path"] = "large.mp4"
    made = prepare(job, files, Setting(".", "cache", "."))
    seen: dict[str, Any] = {}
    order: list[str] = []
    words = [*made.words, "metrics.enabled=false", "logger=none"]

    def send(event: Mapping[str, Any]) -> None:
        if "stage" in event:
            note(seen, event)
            order.extend([event["stage"]] * (event["done"] > 0))

    (name,) = perform({"words": words, "run": "run", "tuned": False}, send)
    plan = {stage.name: stage.steps for stage in made.plan.stages if stage.name != "metrics"}
    assert {name: each["done"] for name, each in seen.items()} == plan
    assert list(dict.fromkeys(order)) == list(
        plan
    )  # no later stage steps during the look, which would pass for the end of others
    learn(tmp_path, made.plan, seen)
    assert set(measured(tmp_path, made.plan.model)) == set(plan)
    edit = tmp_path / "run/edits" / name
    shown = view_note(edit, read_json(edit / "edit.json"))
    assert (
        shown is not None
        and "of frames of 96x96, as the network's " in shown
        and shown.endswith("has the whole frames.")
    )
    assert shown in (tmp_path / "run/report.html").read_text()
    again = prepare(Job(tuned="a", values={"mask.fixed": 0.4}), {}, Setting(".", "cache", ".", run="run"))
    assert "locating" not in {stage.name for stage in again.plan.stages}


def test_the_tint_is_amber_inside_and_blue_outside() -> None:
    made = heated(torch.zeros(1, 3, 2, 2), torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]]))
    assert made[0, 0, 0, 0] > made[0, 2, 0, 0] and made[0, 2, 0, 1] > made[0, 0, 0, 1]


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three jobs: an edit, another threshold on its clip, and one whose clip is missing."""
    monkeypatch.chdir(tmp_path)
    job, _ = own(clip)
    first = {"name": "suv", "backbone": "tiny", **job.values, "tuning.steps": 2, "inversion.steps": 2}
    content = [
        first,
        {"name": "tighter", "tuned": "suv", "mask.threshold": "fixed", "mask.fixed": 0.4},
        {**first, "name": "lost", "video.path": "missing.mp4"},
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(content))
    return tmp_path / "jobs.json"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "is not JSON"),
        ("{}", "give a list of jobs"),
        ('[{"example": "bus_to_suv", "_target_": "x"}]', "job 1: unknown key '_target_'"),
        ('[{"example": "bus_to_suv"}, {"example": "bus_to_suv"}]', "job 2: name=edit is taken"),
        ('[{"tuned": "later"}]', "job 1: tuned=later is no earlier job"),
    ],
)
def test_a_file_that_is_no_list_of_jobs_is_refused_with_code_2(
    text: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("jobs.json").write_text(text)
    assert call(batch.main, "jobs.json", "out=out", "cache=cache") == 2
    assert line in capsys.readouterr().err and not Path("out").exists()


def test_a_dry_run_checks_every_input_and_makes_nothing(
    jobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(batch.main, str(jobs), "--dry-run", "out=out", "cache=cache") == 2
    printed = capsys.readouterr().out
    assert "suv: ok\n" in printed and "tighter: ok, a further edit of suv\n" in printed and "tuning" in printed
    assert "lost: would fail: missing.mp4: no such file" in printed and "3 jobs, 1 would fail" in printed
    assert not Path("out").exists() and not Path("cache").exists()


@pytest.mark.slow
def test_a_batch_runs_what_can_run_and_makes_nothing_twice(jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(batch.main, str(jobs), "out=out", "cache=cache") == 1
    printed = capsys.readouterr().out
    assert (
        "done: suv: out/suv/run/edits/target\n" in printed and "done: tighter: out/suv/run/edits/target-2\n" in printed
    )
    assert (
        "failed: lost: " in printed
        and "missing.mp4: no such file" in printed
        and printed.endswith("3 jobs, 1 failed\n")
    )
    assert call(batch.main, str(jobs), "--dry-run", "out=out", "cache=cache") == 2
    assert capsys.readouterr().out.count("remembered") >= 5  # tuning and inversion of both
    made = Path("out/suv/run/edits/target/edited.mp4").stat().st_mtime_ns
    assert call(batch.main, str(jobs), "out=out", "cache=cache") == 1
    assert Path("out/suv/run/edits/target/edited.mp4").stat().st_mtime_ns == made
