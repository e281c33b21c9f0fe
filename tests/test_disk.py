"""A full disk: one line that names file and remedy, nothing half-written, and the same command goes on afterwards."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from runs import TINY, call, of_clip

import tave.train
from tave import files, space

QUICK = ["metrics.enabled=false", "logger=none"]


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refused(capsys: pytest.CaptureFixture[str], named: Path | str = "") -> str:
    """The last line of an entry point that ended for lack of space."""
    shown = capsys.readouterr().err
    last = shown.strip().splitlines()[-1]
    assert last.startswith("error: ") and str(named) in last and "free some space" in last and "Traceback" not in shown
    return last


def words_of(clip: Path, folder: Path) -> list[str]:
    return [*of_clip(clip), *TINY, f"cache={folder / 'cache'}", f"hydra.run.dir={folder / 'run'}"]


def until_it_works(clip: Path, folder: Path, capsys: pytest.CaptureFixture[str], allowed: Iterator[int]) -> int:
    """Runs one command, whose every nth new file finds the disk full, for each ``allowed`` n until it succeeds."""
    original = files._beside
    for runs, number in enumerate(allowed, 1):
        left = iter(range(number))

        def beside(path: Path, left: Iterator[int] = left) -> Path:
            if next(left, None) is None:
                full()
            return original(path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "_beside", beside)
            code = call(tave.train.main, *words_of(clip, folder), *QUICK)
        if code == 0:
            return runs
        assert code == 1
        refused(capsys, folder)
        assert not list(folder.rglob(".*"))
    raise AssertionError


@pytest.mark.slow
def test_a_run_that_found_the_disk_full_goes_on(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert until_it_works(clip, tmp_path, capsys, iter((6, 14, 1000))) == 3
    assert (tmp_path / "run/edits/suv/edit.json").is_file() and (tmp_path / "run/run.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "file"), [(np, "savez_compressed", "edits/suv"), (_ExperimentWriter, "save", "run")]
)
def test_libraries_that_write_name_the_place_too(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    owner: Any, name: str, file: str,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        assert call(tave.train.main, *words_of(clip, tmp_path), "metrics.enabled=false", "logger=csv") == 1
    refused(capsys, file)
    assert call(tave.train.main, *words_of(clip, tmp_path), *QUICK) == 0


def test_too_little_space_is_told_before_the_tuning(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert call(tave.train.main, *words_of(clip, tmp_path), *QUICK) == 1
    refused(capsys, "MiB")
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


@pytest.mark.parametrize("folder", ["file/run", "n" * 300])
def test_a_folder_that_cant_be_made_is_refused_at_once(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    (tmp_path / "file").touch()
    assert call(tave.train.main, *of_clip(clip), *TINY, *QUICK, f"hydra.run.dir={tmp_path / folder}") == 1
    assert "can't be written" in capsys.readouterr().err.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(
    clip: Path, tmp_path: Path, tiny_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tave.run.check_space", lambda run: None)
    words = [*of_clip(clip), *TINY, *QUICK, f"cache={tiny_disk}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert call(tave.train.main, *words) == 1
    refused(capsys, tiny_disk)
    subprocess.run(["mount", "-o", "remount,size=64m", str(tiny_disk)], check=True)
    assert call(tave.train.main, *words) == 0
