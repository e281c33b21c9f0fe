"""Whether the disk has room for a run, checked beforehand, and whether the run's folder is still there after it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tave.files import FileError

MIB = 2**20


def check_space(needed: Mapping[Path, int]) -> None:
    """Raise :class:`FileError` if a disk has less room than the missing files of ``needed``, path -> bytes."""
    by_disk: dict[int, list[Path]] = {}
    for path in needed:
        if not path.is_file():
            by_disk.setdefault(_standing(path).stat().st_dev, []).append(path)
    for paths in by_disk.values():
        due, free = sum(needed[path] for path in paths), shutil.disk_usage(_standing(paths[0])).free
        if due > free:
            raise FileError(
                f"{paths[0].parent}: the disk has {free // MIB} MiB left and this run needs {due // MIB + 1} MiB: free "
                "some space, or give hydra.run.dir=FOLDER and cache=FOLDER on another disk"
            )


def check_present(folder: Path) -> None:
    """Raise :class:`FileError` if the run ``folder`` was removed under the run, which has put its later files there."""
    if not (folder / "source.mp4").is_file():
        raise FileError(f"{folder}: its files were removed while it was written: run the same command again")


def _standing(path: Path) -> Path:
    """The nearest folder above ``path`` that exists."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())
