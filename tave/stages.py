"""What a long run tells while it goes and afterwards: a bar with the time left, seconds and peak memory of each stage."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

OnStep = Callable[[int, int], None]
"""(steps done, steps in all) -> None, called after each step of a stage."""


class Stages:
    """Names, times and draws the stages of a run; ``record`` is what ``metrics.json`` keeps of them.

    A stage that runs more than once (two passes of the mask, several edits) adds up its seconds and keeps its
    highest peak. Memory is the GPU's where one is used, else the process's resident set. ``remembered``, where it is there, are
    the seconds that a stage took in the run that made what is found in the cache now.
    """

    def __init__(self, *, show: bool = True):
        self.record: dict[str, dict[str, float]] = {}
        self._console = Console(stderr=True, quiet=not show)

    @contextmanager
    def stage(self, name: str, label: str = "") -> Iterator[OnStep]:
        columns = (
            TextColumn("{task.description:<32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        started = time.perf_counter()
        _forget_peak()
        with Progress(*columns, console=self._console) as bars:
            bar = bars.add_task(label or name, total=None)
            yield lambda done, total: bars.update(bar, completed=done, total=total)
            task = bars.tasks[0]
            bars.update(bar, completed=task.total or 1, total=task.total or 1)
        entry = self.record.setdefault(name, {"seconds": 0.0, "peak_mb": 0.0})
        entry["seconds"] = round(entry["seconds"] + time.perf_counter() - started, 3)
        entry["peak_mb"] = max(entry["peak_mb"], round(_peak_mb(), 1))

    @property
    def seconds(self) -> dict[str, float]:
        """What each stage took here so far."""
        return {name: told["seconds"] for name, told in self.record.items()}

    def remember(self, seconds: Mapping[str, float]) -> None:
        """Add what stages took whose products were found."""
        for name, spent in seconds.items():
            entry = self.record.setdefault(name, {"seconds": 0.0, "peak_mb": 0.0})
            entry["remembered"] = round(entry.get("remembered", 0.0) + spent, 3)

    def say(self, line: str) -> None:
        """One line for the person who waits."""
        self._console.print(line, highlight=False, soft_wrap=True)


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux: resets VmHWM; elsewhere the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
