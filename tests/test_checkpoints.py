"""A tuning's checkpoints: whole, verified, data alone; a damaged one is set aside, and the bits are the same."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, call

import tave.files
import tave.train
from tave.cache import DamagedError, read_tensors
from tave.checkpoints import MARK, PARTS, CheckpointFile, resumable
from tave.editor import Editor

CONTENT: dict[str, Any] = dict.fromkeys(PARTS, 0) | {"state_dict": {"weight": torch.arange(6.0).view(2, 3)}}
FORM = {"weight": ((2, 3), torch.float32)}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def last(tmp_path: Path) -> Path:
    path = tmp_path / "tuned-0123456789ab" / "last.ckpt"
    CheckpointFile().save_checkpoint(CONTENT, path)
    return path


def test_a_checkpoint_returns_as_it_was_written(last: Path) -> None:
    found = CheckpointFile().load_checkpoint(last)
    assert found.keys() == CONTENT.keys() and torch.equal(
        found["state_dict"]["weight"], CONTENT["state_dict"]["weight"]
    )
    assert resumable(last, FORM) == last and [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert resumable(last.with_name("none.ckpt")) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def unmarked(path: Path) -> None:
    torch.save(CONTENT, path)


def other_weights(path: Path) -> None:
    CheckpointFile().save_checkpoint({**CONTENT, "state_dict": {"weight": torch.zeros(2, 1)}}, path)


def incomplete(path: Path) -> None:
    CheckpointFile().save_checkpoint({"state_dict": {}}, path)


@pytest.mark.parametrize(
    "damage",
    [
        *(cut, unmarked, other_weights, incomplete, lambda path: path.write_bytes(b"")),
        *(lambda path, place=place: flip(path, place) for place in (0, 30, 90, 200, -200, -1)),
    ],
)
def test_a_damaged_one_is_named_and_set_aside(
    last: Path, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    damage(last)
    content = last.read_bytes()
    assert resumable(last, FORM) is None
    (line,) = caplog.messages
    assert line.startswith(f"{last} is damaged (")
    assert line.endswith("set aside as last.ckpt.damaged, the tuning begins anew")
    assert "\n" not in line and not last.exists()
    assert last.with_name("last.ckpt.damaged").read_bytes() == content


def test_no_code_runs_from_one_even_with_a_right_digest(last: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    content = io.BytesIO()
    torch.save({**CONTENT, "callbacks": Code()}, content)
    last.write_bytes(MARK + hashlib.sha256(content.getvalue()).hexdigest().encode() + b"\n" + content.getvalue())
    with pytest.raises(DamagedError, match="not plain data"):
        CheckpointFile().load_checkpoint(last)
    assert resumable(last) is None and not (tmp_path / "ran").exists()


# ---- a tuning that is stopped and resumed ----------------------------------------------------------------------------


class Command:
    """``tave.train`` without edits, 9 steps with a checkpoint after each 4; counts the steps that it makes."""

    def __init__(self, clip: Path, folder: Path) -> None:
        self.clip, self.folder, self.steps = clip, folder, list[int]()

    def __call__(self, name: str, stop: int | None = None) -> int:
        genuine, self.steps = Editor.training_step, []

        def step(editor: Editor, *rest: Any) -> torch.Tensor:
            if editor.global_step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            self.steps.append(editor.global_step)
            return genuine(editor, *rest)

        given = ["video=custom", f"video.path={self.clip / 'source.mp4'}", "video.source_prompt=a bus", *TINY]
        folders = [f"hydra.run.dir={self.folder / name}", f"cache={self.folder / name / 'cache'}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Editor, "training_step", step)
            patch.setattr("tave.checkpoints.STEPS", 4)
            return call(tave.train.main, *given, "video.frames=2", "tuning.steps=9", "logger=none", *folders)

    def last(self, name: str) -> Path:
        (found,) = (self.folder / name / "cache").glob("tuned-*/last.ckpt")
        return found

    def tuned(self, name: str) -> dict[str, torch.Tensor]:
        return read_tensors(self.folder / name / "tuned.safetensors")[0]


@pytest.fixture(scope="module")
def command(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    made = Command(clip, tmp_path_factory.mktemp("tunings"))
    assert made("whole") == 0 and made.steps == [*range(9)]
    return made


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow  # several runs
def test_a_tuning_goes_on_after_a_damaged_checkpoint_and_equals_an_uninterrupted_one(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("damaged", stop=5) == 143
    last = command.last("damaged")
    flip(last, -1000)
    assert command("damaged") == 0 and command.steps == [*range(9)]
    assert capsys.readouterr().err.count(f"{last} is damaged") == 1
    assert same(command.tuned("damaged"), command.tuned("whole")) and not last.parent.exists()


@pytest.mark.slow  # several runs
def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fills while a checkpoint is written; what was there before stays."""
    assert command("full", stop=2) == 143
    last, genuine = command.last("full"), tave.files._sync
    before = last.read_bytes()

    def full(path: Path) -> None:
        if last.parent in path.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        genuine(path)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(tave.files, "_sync", full)
        assert command("full") == 1 and command.steps[-1] == 3
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and str(last) in error and "free some space" in error
    assert last.read_bytes() == before and [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert command("full") == 0 and command.steps[0] in (2, 3)
    assert same(command.tuned("full"), command.tuned("whole"))
