"""A signal ends a run at its next step, and the same command continues from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from runs import TINY, call, of_clip

import tave.train
from tave import interrupts
from tave.cache import read_tensors
from tave.files import file_digest, whole_file
from tave.interrupts import Interrupted, check, deferred, handled
from tave.progress import OnStep, Progress


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """SIGINT is heard even where these tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


# ---- when a signal ends what ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_ends_the_block_at_once_and_names_itself(signum: signal.Signals, code: int) -> None:
    before = signal.getsignal(signum)
    with (
        pytest.raises(Interrupted, match=f"^stopped by {signum.name}: the same command continues$") as caught,
        handled(),
    ):
        send(signum)
        time.sleep(5)
        raise AssertionError
    assert caught.value.code == code and signal.getsignal(signum) is before


def test_in_a_deferred_block_it_waits_for_the_end_of_the_step() -> None:
    done = []
    with pytest.raises(Interrupted), handled(), deferred():
        for step in range(5):
            with deferred():
                if step == 2:
                    send(signal.SIGTERM)
                done.append(step)
            check()
    assert done == [0, 1, 2]


def test_a_file_that_is_being_written_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(Interrupted), handled(), whole_file(path) as waiting:
        send(signal.SIGINT)
        waiting.write_text("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_errors_are_not_taken_for_it() -> None:
    with pytest.raises(Interrupted), handled():
        try:
            send(signal.SIGTERM)
            time.sleep(5)
        except Exception:
            raise AssertionError from None


def test_a_signal_that_is_sent_twice_counts_once_and_a_later_one_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(interrupts, "_end_now", ended.append)
    with pytest.raises(Interrupted), handled(), deferred():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert not ended
        monkeypatch.setattr(interrupts, "REPEATED", 0.0)
        send(signal.SIGINT)
        assert ended == [signal.SIGINT]


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup, or in the background of a script
    try:
        with handled():
            send(signal.SIGINT)
            check()
    finally:
        signal.signal(signal.SIGINT, before)


WORKER = """
import multiprocessing, time, tave.interrupts
def work():
    tave.interrupts.follow_parent()
    print("up", flush=True)
    time.sleep(60)
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join()
"""


def test_a_worker_ends_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        process.kill()
        assert process.stdout.read() == b""  # ends when the last process that holds the pipe does


# ---- in each stage ---------------------------------------------------------------------------------------------------


@contextmanager
def signal_in(stage: str, signum: int) -> Iterator[None]:
    """Send a signal after the first step of a stage, or at its beginning where it has none."""
    original = Progress.stage

    @contextmanager
    def watched(self: Progress, name: str, label: str = "", *, steps: bool = True) -> Iterator[OnStep]:
        with original(self, name, label, steps=steps) as on_step:
            if name == stage and name in ("writing", "encoding", "decoding", "metrics"):
                send(signum)

            def after(done: int, total: int) -> None:
                if name == stage:
                    send(signum)
                on_step(done, total)

            yield after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "stage", watched)
        yield


STAGES = ("encoding", "tuning", "inversion", "reconstruction", "masking", "sampling", "decoding", "writing")


def interrupted_runs(
    stages: tuple[str, ...], clip: Path, folder: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> Path:
    """The run folder after one command was stopped in each of ``stages`` and then completed."""
    run = folder / "run"
    words = [*of_clip(clip), *TINY, "metrics.enabled=false", *more, f"cache={folder / 'cache'}", f"hydra.run.dir={run}"]
    for number, stage in enumerate(stages):
        signum, code = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[number % 2]
        with signal_in(stage, signum):
            assert call(tave.train.main, *words) == code, stage
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last == f"stopped by {signum.name}: the same command continues", stage
        assert not hidden(folder), stage
        assert stage == "writing" or not (run / "edits/suv").exists()
    assert call(tave.train.main, *words) == 0
    return run


def same(one: Path, other: Path) -> bool:
    weights, others = (read_tensors(run / "tuned.safetensors")[0] for run in (one, other))
    clips = [file_digest(run / "edits/suv/edited.mp4") for run in (one, other)]
    return clips[0] == clips[1] and all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_stopped_run_continues(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = interrupted_runs(("sampling",), clip, tmp_path, capsys, "logger=none")
    assert (run / "edits/suv/edited.mp4").is_file()


@pytest.mark.slow
def test_a_run_that_was_stopped_in_every_stage_equals_an_uninterrupted_one(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = interrupted_runs(STAGES, clip, tmp_path / "stopped", capsys)
    assert same(stopped, interrupted_runs((), clip, tmp_path / "whole", capsys))


@pytest.mark.slow
def test_a_sweep_ends_with_its_running_job(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*of_clip(clip), *TINY, "metrics.enabled=false", "logger=none", f"cache={tmp_path / 'cache'}"]
    with signal_in("sampling", signal.SIGTERM):
        assert call(tave.train.main, "-m", *words, "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}") == 143
    assert "the same command continues" in capsys.readouterr().err
    assert len([path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]) == 1
