"""Work side by side: every task once, whatever dies, and nothing is told in another way than by one process."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from tave.workers import WorkerDiedError, steps_of


def count(task: int) -> Iterator[str]:
    """Steps 0 to task - 1, each told with the process it was made in; negative tasks are trouble."""
    if task == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == -2:
        raise ValueError("no such task")
    for step in range(task):
        logging.getLogger("tests.counting").warning("step %d of %d", step, task)
        yield f"{os.getpid()} {torch.get_num_threads()} {step}"


def opened(place: Path | None = None) -> Callable[[int], Iterator[str]]:
    if place:
        (place / str(os.getpid())).touch()
    return count


def refused() -> Callable[[int], Iterator[str]]:
    raise ValueError("cannot begin")


@pytest.mark.parametrize("workers", [1, 9])
def test_every_step_of_every_task_is_told_once_and_in_its_order(
    workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [3, 0, 2]
    told = list(steps_of(partial(opened, tmp_path), tasks, workers))
    for number, task in enumerate(tasks):
        steps = [step for at, step in told if at == number]
        assert [step and step.split()[-1] for step in steps] == [*map(str, range(task)), None]
    assert sorted(caplog.messages) == sorted(f"step {step} of {task}" for task in tasks for step in range(task))
    processes = {int(path.name) for path in tmp_path.iterdir()}
    assert len(processes) == min(workers, len(tasks))
    assert (os.getpid() in processes) == (workers == 1)
    threads = {int(step.split()[1]) for _, step in told if step}
    assert threads == {max(1, torch.get_num_threads() // min(workers, len(tasks)))}


def test_a_process_that_is_killed_costs_its_task_alone() -> None:
    told = list(steps_of(opened, [1, -1, 1], 2))
    for number, task in enumerate([1, -1, 1]):
        first, last = (step for at, step in told if at == number)
        assert last is None
        if task == -1:
            assert isinstance(first, WorkerDiedError) and "signal 9" in str(first) and "workers" in str(first)
        else:
            assert first.endswith(" 0")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("begin", "named"), [(refused, "cannot begin"), (opened, "no such task")])
def test_an_error_of_the_work_is_raised_here(
    begin: Callable[[], Callable[[int], Iterator[str]]], named: str, workers: int
) -> None:
    with pytest.raises(ValueError, match=named):
        list(steps_of(begin, [1, -2, 1], workers))
