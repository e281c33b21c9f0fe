"""Independent pieces of work side by side, each in a process of its own with its share of the cores.

On a CPU two processes of one thread each are faster than one of two: small pictures don't fill the threads of a step.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from logging.handlers import QueueHandler
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

Work = Callable[[Any], Iterator[Any]]  # a task's steps, as they are done


class WorkerDiedError(RuntimeError):
    """A process was killed over its task."""


def steps_of(opened: Callable[[], Work], tasks: Sequence[Any], workers: int) -> Iterator[tuple[int, Any]]:
    """The steps of all ``tasks`` as they are done, each with its task's number; a task is over with a step ``None``.

    ``opened`` makes the work, once in each process: with one worker here, task after task. It, the tasks and their steps are
    pickled. A process that dies leaves a step :class:`WorkerDiedError`, and another takes its place. What a process logs is
    logged here, and an error that the work raises is raised here.
    """
    if workers == 1 or len(tasks) < 2:
        work = opened()
        for number, task in enumerate(tasks):
            yield from ((number, step) for step in work(task))
            yield number, None
        return
    workers = min(workers, len(tasks))
    threads = max(1, torch.get_num_threads() // workers)
    due, busy = list(enumerate(tasks))[::-1], [_Worker(opened, threads) for _ in range(workers)]
    try:
        for worker in busy:
            worker.give(*due.pop())
        while busy:
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                step = worker.step()
                if isinstance(step, logging.LogRecord):
                    logging.getLogger(step.name).handle(step)
                    continue
                died = isinstance(step, WorkerDiedError)
                if isinstance(step, Exception) and not died:
                    raise step
                yield worker.number, step
                if died:
                    yield worker.number, None
                elif step is not None:
                    continue
                if due:
                    worker.give(*due.pop())
                else:
                    worker.stop()
                    busy.remove(worker)
    finally:
        for worker in busy:
            worker.stop()


class _Worker:
    """A process, started anew if it has died, and the number of the task that it is at."""

    def __init__(self, opened: Callable[[], Work], threads: int):
        self.opened, self.threads, self.number = opened, threads, -1
        self.start()

    def start(self) -> None:
        context = get_context("spawn")  # a forked process would hang in the threads that its parent had
        self.pipe, theirs = context.Pipe()
        told = (theirs, self.opened, self.threads, logging.getLogger().level)
        self.process = context.Process(target=_serve, args=told)
        self.process.start()
        theirs.close()

    def give(self, number: int, task: Any) -> None:
        if not self.process.is_alive():
            self.stop()
            self.start()
        self.number = number
        with suppress(BrokenPipeError):  # it dies meanwhile: its next step tells
            self.pipe.send(task)

    def step(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            how = f"was killed by signal {-code}" if (code := self.process.exitcode or 0) < 0 else f"ended with code {code}"
            return WorkerDiedError(f"its process {how}: if that was for want of memory, give fewer workers")

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


class _ToParent(QueueHandler):
    """Sends records through a pipe."""

    queue: Any

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send(record)


def _serve(pipe: Connection, opened: Callable[[], Work], threads: int, level: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends this one
    torch.set_num_threads(threads)
    root = logging.getLogger()
    root.setLevel(level)
    root.handlers = [_ToParent(pipe)]  # type: ignore[arg-type]
    with suppress(ConnectionError):  # the parent is gone
        try:
            work = opened()
            while True:
                for step in work(pipe.recv()):
                    pipe.send(step)
                pipe.send(None)
        except Exception as error:
            pipe.send(error)
