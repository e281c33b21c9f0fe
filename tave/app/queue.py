"""The jobs of all users: a bounded queue, one at a time, each in its own folder; kept over a restart."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tave.app.check import Prepared, Setting
from tave.app.job import FILES, Job, check_limits, inherited, same_maps
from tave.app.plan import Plan, learn, note
from tave.app.public import cut, public
from tave.app.spaces import ID, RefusedError, Spaces, now, stored_name, sweep_cache
from tave.app.worker import Child, reason
from tave.config import OptionError
from tave.files import FileError, read_json, write_json

log = logging.getLogger(__name__)

RUN = "run"
RECORD = "job.json"
SWEEP = 60.0  # s between two removals of old work
OVER = ("done", "failed", "cancelled")
UNTUNED = {"failed": "that job failed and has no tuned clip: see its error, and submit it again"}
UNTUNED |= {"cancelled": "that job was cancelled and has no tuned clip: submit it again"}


class Running(Protocol):
    """What the queue needs of a started job."""

    def wait(self, send: Callable[[Mapping[str, Any]], None]) -> int: ...
    def cancel(self) -> None: ...


@dataclass
class Status:
    """What is known of a job. Times in s since the epoch; ``stages``: stage -> done, total, seconds, peak_mb."""

    state: str = "queued"
    submitted: float = 0.0
    started: float | None = None
    finished: float | None = None
    error: str | None = None
    edits: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ticket:
    """A job of the queue. ``root``: the job whose run folder it writes to; ``names``: path of a file -> as given."""

    id: str
    space: str
    folder: Path
    root: str
    job: Job
    prepared: Prepared
    names: dict[str, str]
    status: Status

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder.parent / self.root / RUN

    def save(self) -> None:
        """Write the record by which a restarted server knows the job."""
        known = {"id": self.id, "root": self.root, "job": asdict(self.job), "prepared": asdict(self.prepared)}
        write_json(self.folder / RECORD, known | {"names": self.names, "status": asdict(self.status)})

    @staticmethod
    def load(folder: Path, space: str) -> Ticket:
        """The job in ``folder``."""
        found = read_json(folder / RECORD)
        prepared = found["prepared"]
        made = Prepared(tuple(prepared["words"]), Plan.read(prepared["plan"]), prepared["files"])
        job, status = Job(**found["job"]), Status(**found["status"])
        return Ticket(found["id"], space, folder, found["root"], job, made, found["names"], status)


class Queue:
    """Takes jobs, runs them one after another, removes old ones."""

    def __init__(
        self,
        folder: Path,
        spaces: Spaces,
        weights: Mapping[str, list[str]],
        begin: Callable[..., Running] = Child,
    ) -> None:
        self.folder, self.spaces, self.limits, self.weights, self._begin = folder, spaces, spaces.limits, weights, begin
        self.tickets: dict[str, Ticket] = {}
        self.waiting: list[str] = []
        self._change = threading.Condition()
        self._reserved: list[str] = []  # spaces whose job is being checked
        self._running: tuple[str, Running] | None = None
        self._stopping: set[str] = set()
        self._closed = threading.Event()
        self._restore()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._work, self._sweeps)]
        for thread in self._threads:
            thread.start()

    # ---- what users ask ----------------------------------------------------------------------------------------------

    def submit(self, space: str, job: Job) -> Ticket:
        """Check a job and queue it. Raises :class:`RefusedError` if there is no room, ValueError for bad inputs."""
        check_limits(job, self.limits)
        earlier = self.get(space, job.tuned, "tuned") if job.tuned else None
        if earlier is not None and not (earlier.run / "run.json").is_file():
            raise OptionError(f"tuned={job.tuned}: {UNTUNED.get(earlier.status.state, 'that job is not done: wait')}")
        self._reserve(space)
        key = secrets.token_hex(8)
        folder = self.spaces.of(space) / "jobs" / key
        try:
            folder.mkdir(parents=True, mode=0o700)
            whole = inherited(job, earlier.job) if earlier else job
            files, names = self._link(space, folder, job, whole, earlier)
            root = self.tickets[earlier.root] if earlier else None
            example = root.job.example if root else job.example
            cache = self.folder / "cache" if example else self.spaces.of(space) / "cache"
            run = f"../{root.id}/{RUN}" if root else None
            maps, place = earlier is not None and same_maps(job, earlier.job), os.path.relpath(cache, folder)
            setting = Setting(str(folder), place, str(self.folder), run, example, maps, self.weights)
            try:
                prepared = self.spaces.checker.prepare(whole, files, setting, self.limits)
            except ValueError as error:
                raise OptionError(public(str(error), names)) from None
            status = Status(submitted=now(), warnings=[public(line, names) for line in prepared.plan.warnings])
            ticket = Ticket(key, space, folder, root.id if root else key, whole, prepared, names, status)
            ticket.save()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            with self._change:
                self._reserved.remove(space)
            raise
        with self._change:
            self._reserved.remove(space)
            self.tickets[key] = ticket
            self.waiting.append(key)
            self._change.notify_all()
        return ticket

    def _reserve(self, space: str) -> None:
        with self._change:
            busy = [self.tickets[key].space for key in self.waiting] + self._reserved
            if len(busy) >= self.limits.queue:
                raise RefusedError(f"{len(busy)} jobs are waiting, which is all that the queue takes: try again later")
            running = [self.tickets[self._running[0]].space] if self._running else []
            if [*busy, *running].count(space) >= self.limits.each:
                raise RefusedError(f"{self.limits.each} of your jobs wait or run: wait, or cancel one")
            self._reserved.append(space)

    def _link(
        self, space: str, folder: Path, job: Job, whole: Job, earlier: Ticket | None
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The job's files in its own folder: paths relative to it by key, and the names that the user gave them."""
        files, names = {}, {}
        for key in FILES:
            if not whole.values.get(key):
                continue
            if job.values.get(key):
                source, upload = self.spaces.upload_path(space, job.values[key], key)
                given = upload.name
            else:
                assert earlier is not None
                source = earlier.folder / earlier.prepared.files[key]
                given = earlier.names[earlier.prepared.files[key]]
            place = f"inputs/{key.partition('.')[2]}/{stored_name(given)}"
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            os.link(source, folder / place)
            files[key], names[place] = place, given
        return files, names

    def get(self, space: str, key: str, which: str = "job") -> Ticket:
        """A job of this space. Raises :class:`OptionError` for all others."""
        ticket = self.tickets.get(key) if ID.fullmatch(key) else None
        if ticket is None or ticket.space != space:
            raise OptionError(f"{which}={key[:40]!r} is no job of yours")
        return ticket

    def of(self, space: str) -> list[Ticket]:
        """The jobs of a space, the latest first."""
        found = [ticket for ticket in list(self.tickets.values()) if ticket.space == space]
        return sorted(found, key=lambda ticket: -ticket.status.submitted)

    def cancel(self, space: str, key: str) -> Ticket:
        """End a job that waits or runs; one that is over stays as it is."""
        ticket = self.get(space, key)
        with self._change:
            if key in self.waiting:
                self.waiting.remove(key)
                self._finish(ticket, "cancelled")
            elif self._running and self._running[0] == key and key not in self._stopping:
                self._stopping.add(key)
                self._running[1].cancel()
        return ticket

    def remove(self, space: str, key: str) -> None:
        """Remove a job that is over, with its files. Raises :class:`OptionError` while another one needs them."""
        ticket = self.get(space, key)
        with self._change:
            if ticket.status.state not in OVER:
                raise OptionError(f"job={key} is {ticket.status.state}: cancel it first")
            if others := [each.id for each in self.tickets.values() if each.root == key and each.id != key]:
                raise OptionError(f"job={key} holds the tuned clip of {others[0]}: remove that first")
            del self.tickets[key]
        shutil.rmtree(ticket.folder, ignore_errors=True)

    def position(self, key: str) -> int | None:
        """How many jobs come before this one; None if it does not wait."""
        with self._change:
            if key not in self.waiting:
                return None
            return self.waiting.index(key) + (self._running is not None)

    def is_stopping(self, key: str) -> bool:
        """Whether a job was cancelled and runs until the end of its step."""
        return key in self._stopping

    # ---- the work ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the running job, which goes on when the server starts again."""
        self._closed.set()
        with self._change:
            if self._running:
                self._running[1].cancel()
            self._change.notify_all()
        self._threads[0].join(90)

    def _restore(self) -> None:
        for space in self.spaces.all():
            for folder in (self.spaces.of(space) / "jobs").glob("*"):
                try:
                    ticket = Ticket.load(folder, space)
                except (FileError, KeyError, TypeError):  # it was submitted when the server stopped
                    shutil.rmtree(folder, ignore_errors=True)
                    continue
                self.tickets[ticket.id] = ticket
                if ticket.status.state not in OVER:
                    ticket.status.state = "queued"
                    self.waiting.append(ticket.id)
        self.waiting.sort(key=lambda key: self.tickets[key].status.submitted)

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self.waiting or self._closed.is_set())
                if self._closed.is_set():
                    return
                ticket = self.tickets[self.waiting.pop(0)]
                ticket.status.state, ticket.status.started = "running", now()
                ticket.status.stages.clear()
                try:
                    run = RUN if ticket.root == ticket.id else f"../{ticket.root}/{RUN}"
                    child = self._begin(ticket.folder, ticket.prepared.words, run, tuned=ticket.job.tuned is not None)
                    self._running = ticket.id, child
                    ticket.save()
                except (OSError, FileError) as error:
                    self._finish(ticket, "failed", public(cut(str(error))))
                    continue
            code = child.wait(lambda event, ticket=ticket: self._told(ticket, event))
            with self._change:
                self._running = None
                if self._closed.is_set() and ticket.id not in self._stopping and code != 0:
                    return  # its record says that it runs: it goes on at the next start
                if code == 0:
                    self._finish(ticket, "done")
                elif ticket.id in self._stopping:
                    self._finish(ticket, "cancelled")
                else:
                    self._finish(ticket, "failed", ticket.status.error or reason(code))
                self._stopping.discard(ticket.id)

    def _finish(self, ticket: Ticket, state: str, error: str | None = None) -> None:
        ticket.status.state, ticket.status.finished, ticket.status.error = state, now(), error
        with suppress(FileError, OSError):
            ticket.save()
        if state == "done":
            with suppress(FileError, OSError):
                learn(self.folder, ticket.prepared.plan, ticket.status.stages)

    def _told(self, ticket: Ticket, event: Mapping[str, Any]) -> None:
        """Note an event of the running job."""
        status = ticket.status
        if "stage" in event:
            note(status.stages, event)
        elif "warning" in event and len(status.warnings) < 20:
            line = public(event["warning"], ticket.names)
            status.warnings += [line] if line not in status.warnings else []
        elif "error" in event:
            status.error = public(event["error"], ticket.names)
        elif "edits" in event:
            status.edits = event["edits"]

    def _sweeps(self) -> None:
        while not self._closed.wait(SWEEP):
            try:
                self.sweep(now())
            except Exception:
                log.exception("old work could not be removed")

    def sweep(self, at: float) -> None:
        """Remove jobs that have been over for longer than the limit, with all edits of one clip, and old uploads."""
        with self._change:
            groups: dict[str, list[Ticket]] = {}
            for ticket in self.tickets.values():
                groups.setdefault(ticket.root, []).append(ticket)
            old = []
            for group in groups.values():
                ends = [ticket.status.finished for ticket in group]
                if all(end is not None and at - end > self.limits.seconds for end in ends):
                    old += group
            for ticket in old:
                del self.tickets[ticket.id]
        for ticket in old:
            shutil.rmtree(ticket.folder, ignore_errors=True)
        for space in list(self.spaces.all()):
            self.spaces.sweep(space, at)
        sweep_cache(self.folder / "cache", at - self.limits.seconds)
