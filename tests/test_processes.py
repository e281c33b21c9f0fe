"""What needs processes of its own: a tuning that is killed, and a sweep."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import TINY, ages, of_clip

from tave.cache import read_tensors
from tave.cli import compose_options
from tave.files import read_json
from tave.train import train

pytestmark = pytest.mark.slow


def started(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", "tave.train", *words]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})


def test_a_killed_tuning_continues_and_equals_an_uninterrupted_one(clip: Path, tmp_path: Path) -> None:
    def words(where: str) -> list[str]:
        given = ["video=bus_to_suv", f"video.path={clip / 'source.mp4'}", "video.edits={}", "video.frames=2"]
        return [*given, *TINY, "logger=none", "tuning.steps=80", f"cache={tmp_path / where / 'cache'}"]

    killed, states = tmp_path / "killed/run", tmp_path / "killed/cache"
    process, deadline = started(*words("killed"), f"hydra.run.dir={killed}"), time.monotonic() + 300
    while not list(states.glob("tuned-*/last.ckpt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert list(states.glob("tuned-*/last.ckpt")) and not list(states.glob("tuned-*.safetensors"))
    runs = [train(compose_options("train", words(w)), tmp_path / w / "run", show=False) for w in ("killed", "whole")]
    one, other = (read_tensors(run / "tuned.safetensors")[0] for run in runs)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_sweep_tunes_once_and_a_repeated_one_makes_nothing(clip: Path, tmp_path: Path) -> None:
    folders = [f"hydra.sweep.dir={tmp_path / 'sweep'}", f"cache={tmp_path / 'cache'}", "logger=none"]
    words = ["-m", *of_clip(clip), *TINY, *folders, "correction.weights=[0,1,0],[0.25,0.5,0.25]"]
    assert started(*words).wait(timeout=300) == 0
    runs = [path.parent for path in (tmp_path / "sweep").glob("*/run.json")]
    weights = [read_json(run / "run.json")["config"]["correction"]["weights"] for run in runs]
    assert sorted(weights) == [[0, 1, 0], [0.25, 0.5, 0.25]]
    stages = [read_json(run / "metrics.json")["stages"] for run in runs]
    assert sorted(stage.get("tuning", {}).get("seconds", 0) > 0 for stage in stages) == [False, True]
    before = ages(tmp_path / "sweep")
    assert started(*words).wait(timeout=300) == 0
    changed = {path.name for path, at in ages(tmp_path / "sweep").items() if before.get(path) != at}
    assert changed <= {"run.json", "metrics.json", "source.mp4", "SHA256SUMS", "multirun.yaml"}
