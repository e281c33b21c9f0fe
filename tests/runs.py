"""Small runs for tests of the entry points: the tiny backbone in a few steps."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from tave.cli import compose_config, typed
from tave.config import WHOLE, TrainOptions
from tave.denoiser import Denoiser
from tave.files import read_json
from tave.video import read_clip

TINY = ["backbone=tiny", "tuning.steps=2", "inversion.steps=2", "inversion.refine=0", "metrics.judge=null"]


def of_clip(clip: Path) -> list[str]:
    """The words that choose the drawn clip of the fixture ``clip`` and its edit."""
    edit = "video.edits.suv"
    given = [f"{edit}.target_image={clip / 'target.png'}", f"{edit}.truth={clip / 'truth'}"]
    return ["video=bus_to_suv", f"video.path={clip / 'source.mp4'}", *given]


def options(clip: Path, folder: Path, *words: str) -> TrainOptions:
    """A small run of ``clip`` without loggers, its cache in ``folder``. Composing takes as long as a run: once."""
    groups = [word for word in words if word.partition("=")[0] in ("memory", "logger")]
    values = OmegaConf.from_dotlist([f"cache={folder}", *(word for word in words if word not in groups)])
    return typed(cast(DictConfig, OmegaConf.merge(_composed(clip, *groups), values)))


@cache
def _composed(clip: Path, *words: str) -> DictConfig:
    return compose_config("train", [*of_clip(clip), *TINY, "logger=none", *words])


def call(main: Callable[[], None], *words: str) -> int:
    """Run an entry point in this process; returns its exit code. Hydra's handlers of log messages go again."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tave", *words])
        try:
            main()
        except SystemExit as left:
            return int(left.code or 0)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
    return 0


def frames_of(path: Path) -> Tensor:
    return read_clip(path, WHOLE).frames


def ages(folder: Path) -> dict[Path, int]:
    """When each file was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def figures_of(run: Path) -> dict[str, dict[str, Any]]:
    return read_json(run / "metrics.json")["edits"]


def computed(run: Path) -> set[str]:
    """The stages that a run's first command computed, not those whose results were stored."""
    return {name for name, spent in read_json(run / "metrics.json")["stages"].items() if spent["seconds"]}


@contextmanager
def evaluations() -> Iterator[list[int]]:
    """Count the evaluations of the network: the list gets a number for each."""
    seen: list[int] = []
    output = Denoiser.output

    def counted(self: Denoiser, latents: Tensor, *rest: Any) -> Tensor:
        seen.append(len(latents))
        return output(self, latents, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, "output", counted)
        yield seen


HOLD = "import sys\nfrom pathlib import Path\nfrom tave.locks import claimed\nwith claimed(Path(sys.argv[1])):\n"
HOLD += " print('held', flush=True)\n sys.stdin.readline()\n"


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds ``path`` until it reads a line."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield process
        process.kill()
