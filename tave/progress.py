"""Progress of a run: a bar with the time left for each stage, and a record of seconds and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from rich import progress
from rich.console import Console

from tave.interrupts import check, deferred

OnStep = Callable[[int, int], None]
"""(steps done, total steps) -> None, called after each step of a stage; a signal that came during it ends the run."""


class Progress:
    """Shows and times the stages of a run.

    ``record`` maps each stage to ``seconds``, ``peak_mb`` and, where a cached result was used, ``remembered``: the
    seconds that computing it took. A stage that runs more than once adds up its seconds and keeps its highest peak,
    which is the GPU's memory if there is one, else the process's resident set.
    """

    def __init__(self, *, show: bool = True):
        self.record: dict[str, dict[str, float]] = {}
        self._console = Console(stderr=True, quiet=not show)

    @contextmanager
    def stage(self, name: str, label: str = "", *, steps: bool = True) -> Iterator[OnStep]:
        """Time the block as the stage ``name``, shown as ``label``; yields the function to call after each step.

        Signals wait for the end of a step, or of the stage; in a stage without ``steps`` they end the run at once.
        """
        columns = (progress.TextColumn("{task.description:<32}"), progress.BarColumn(), progress.MofNCompleteColumn())
        times = (progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn())
        started = time.perf_counter()
        _reset_peak()
        around = deferred() if steps else nullcontext()
        with around, progress.Progress(*columns, *times, console=self._console) as bars:
            bar = bars.add_task(label or name, total=None)

            def on_step(done: int, total: int) -> None:
                bars.update(bar, completed=done, total=total)
                check()

            yield on_step
            total = bars.tasks[0].total or 1
            bars.update(bar, completed=total, total=total)
        entry = self._entry(name)
        entry["seconds"] = round(entry["seconds"] + time.perf_counter() - started, 3)
        entry["peak_mb"] = max(entry["peak_mb"], round(_peak_mb(), 1))

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds spent in each stage so far."""
        return {name: entry["seconds"] for name, entry in self.record.items()}

    def remember(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds that cached results took when they were computed, by stage."""
        for name, spent in seconds.items():
            entry = self._entry(name)
            entry["remembered"] = round(entry.get("remembered", 0.0) + spent, 3)

    def note(self, line: str) -> None:
        """Print one line."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """Print one line as a warning."""
        self._console.print(f"warning: {line}", highlight=False, markup=False, soft_wrap=True, style="yellow")

    def _entry(self, name: str) -> dict[str, float]:
        return self.record.setdefault(name, {"seconds": 0.0, "peak_mb": 0.0})


def _reset_peak() -> None:
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
