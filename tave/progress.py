"""Progress of a run: a bar with the time left for each stage, and a record of seconds and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import progress
from rich.console import Console
from torch import Tensor

from tave.interrupts import check, deferred

OnStep = Callable[[int, int], None]
"""(steps done, total steps) -> None, called after each step of a stage; a signal that came during it ends the run."""


@dataclass(frozen=True)
class Event:
    """What listeners receive: that a stage begins (``done`` 0), each step of it, its end (``over``), or a value.

    ``seconds`` since the stage began; ``peak_mb``: at its end; ``value``: a result by the name ``stage``.
    """

    stage: str
    label: str = ""
    done: int = 0
    total: int | None = None
    seconds: float = 0.0
    peak_mb: float = 0.0
    over: bool = False
    value: Tensor | None = None


listeners: list[Callable[[Event], None]] = []
"""Called with every event of this process, shown or not: how a program follows a run."""


def _tell(event: Event) -> None:
    for listener in listeners:
        listener(event)


class Progress:
    """Shows and times the stages of a run.

    ``record`` maps each stage to ``seconds``, ``peak_mb`` and, where a cached result was used, ``remembered``: the
    seconds that computing it took. A stage that runs more than once adds up its seconds and keeps its highest peak,
    which is the GPU's memory if there is one, else the process's resident set.
    """

    def __init__(self, *, show: bool = True):
        self.record: dict[str, dict[str, float]] = {}
        self._whole: str | None = None
        self._console = Console(stderr=True, quiet=not show)

    @contextmanager
    def stage(self, name: str, label: str = "", *, steps: bool = True) -> Iterator[OnStep]:
        """Time the block as the stage ``name``, shown as ``label``; yields the function to call after each step.

        Signals wait for the end of a step, or of the stage; in a stage without ``steps`` they end the run at once.
        """
        columns = (progress.TextColumn("{task.description:<32}"), progress.BarColumn(), progress.MofNCompleteColumn())
        times = (progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn())
        name, started = self._whole or name, time.perf_counter()
        _reset_peak()
        around = deferred() if steps else nullcontext()
        with around, progress.Progress(*columns, *times, console=self._console) as bars:
            bar = bars.add_task(label or name, total=None)
            _tell(Event(name, label))

            def on_step(done: int, total: int) -> None:
                bars.update(bar, completed=done, total=total)
                _tell(Event(name, label, done, total, time.perf_counter() - started))
                check()

            yield on_step
            total = bars.tasks[0].total or 1
            bars.update(bar, completed=total, total=total)
        entry, spent, peak = self._entry(name), time.perf_counter() - started, round(_peak_mb(), 1)
        entry["seconds"] = round(entry["seconds"] + spent, 3)
        entry["peak_mb"] = max(entry["peak_mb"], peak)
        _tell(Event(name, label, int(total), int(total), spent, peak, over=True))

    @contextmanager
    def counted_as(self, name: str) -> Iterator[None]:
        """Count all stages of the block as the stage ``name``; their bars keep their labels."""
        self._whole = name
        try:
            yield
        finally:
            self._whole = None

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds spent in each stage so far."""
        return {name: entry["seconds"] for name, entry in self.record.items()}

    def remember(self, seconds: Mapping[str, float]) -> None:
        """Add the seconds that cached results took when they were computed, by stage."""
        for name, spent in seconds.items():
            entry = self._entry(name)
            entry["remembered"] = round(entry.get("remembered", 0.0) + spent, 3)

    def found(self, name: str, value: Tensor) -> None:
        """Tell listeners of a result as soon as it exists."""
        _tell(Event(name, value=value))

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
