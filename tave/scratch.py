"""Room for what grows with the clip: tensors in mapped files, which the system keeps on the disk where memory is short.

A mapped tensor is used like any other. What is computed of it takes memory, so do that for :func:`spans` of frames.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from tave.files import writing

STEP = 16  # frames that are computed at once


def spans(frames: int, step: int = STEP) -> Iterator[slice]:
    """Ranges of at most ``step`` frames, in order."""
    return (slice(start, min(start + step, frames)) for start in range(0, frames, step))


@dataclass(frozen=True)
class Scratch:
    """Makes CPU tensors: in files without a name, below ``folder`` or the nearest folder above it; None: in memory.

    Their room on the disk is free again when they are, and when the process ends, however it ends.
    """

    folder: Path | None = None

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor to be filled. Raises :class:`FileError` where the disk has no room for it."""
        size = prod(shape) * dtype.itemsize
        if self.folder is None or not size:
            return torch.empty(shape, dtype=dtype, device="cpu")
        with writing(self.folder / "a temporary file"), self._file(self.folder) as file:
            if reserve := getattr(os, "posix_fallocate", None):  # not on macOS
                reserve(file.fileno(), 0, size)  # a full disk is an error here, and a signal when it is filled
            file.truncate(size)
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(shape)

    def _file(self, folder: Path) -> IO[bytes]:
        """A file without a name in ``folder``, or above it where that is not there or another process removes it."""
        try:
            return tempfile.TemporaryFile(dir=folder)
        except (FileNotFoundError, NotADirectoryError):
            above = folder.absolute().parent
            if above == folder:
                raise
            return self._file(above)

    def of(self, make: Callable[[slice], Tensor], frames: int, step: int = STEP) -> Tensor:
        """``make`` of each of the :func:`spans`, one after another, as one tensor `f ...`."""
        total: Tensor | None = None
        for span in spans(frames, step):
            part = make(span)
            if total is None:
                total = self.empty(frames, *part.shape[1:], dtype=part.dtype)
            total[span] = part
        assert total is not None
        return total


class Spool:
    """Frames of one shape that arrive one by one."""

    def __init__(self, scratch: Scratch) -> None:
        self.scratch, self.shapes, self._count, self._held = scratch, set[tuple[int, ...]](), 0, torch.empty(0)

    def append(self, frame: Tensor) -> None:
        """Copy ``frame``; of another shape than the first, only that is noted, in ``shapes``."""
        self.shapes.add(tuple(frame.shape))
        if self._count == len(self._held):
            first = self._held[0] if self._count else frame
            wider = self.scratch.empty(max(STEP, 2 * self._count), *first.shape, dtype=first.dtype)
            for span in spans(self._count):
                wider[span] = self._held[span]
            self._held = wider
        if self._held.shape[1:] == frame.shape:
            self._held[self._count] = frame
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def tensor(self) -> Tensor:
        """All frames so far, `f ...`."""
        return self._held[: self._count]
