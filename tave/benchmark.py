"""The benchmark's door: every case of a set under every row, into folders from which ``eval.leaderboard`` makes its tables.

    python -m tave.benchmark                          the drawn world's full list
    python -m tave.benchmark set=small                one case of each group, fewer steps
    python -m tave.benchmark set=folder set.folder=F  your own clips: docs/external_sets.md

A case is tuned and inverted once, in the run folder FOLDER/CASE; each row is one more edit of it. What stands is not made
again. What fails is listed in FOLDER/CASE/failed.json until it succeeds, and the rest goes on.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils.logging import disable_progress_bar

from tave.cache import read_json, write_json
from tave.config import CONF, schema, typed
from tave.controls import CONTROLS
from tave.listing import ListedCase, read_listing
from tave.options import OptionError, within
from tave.rows import Job, Method, method_of, wanted
from tave.story import quoted
from tave.train import guarded
from tave.workers import WorkerDiedError, steps_of

log = logging.getLogger(__name__)

Measure = Callable[[Job, str], list[str]]
Step = tuple[str, str | None]  # a row, or "tuning", and what went wrong with it, if anything


@dataclass
class BenchmarkOptions:
    """The root of ``conf/benchmark.yaml``."""

    set: dict[str, Any] = field(default_factory=dict)  # a `_target_` that returns the path of a listing
    folder: str = MISSING  # where everything goes: cases and runs
    rows: list[str] = field(default_factory=list)  # names of methods and controls
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)  # the fields of a Method, by its row's name
    overrides: list[str] = field(default_factory=list)  # as for tave.train, for every case
    seeds: list[int] = field(default_factory=lambda: [33])
    only: list[str] = field(default_factory=list)  # names of cases; empty: all
    workers: int = 1  # cases side by side, each in a process with its share of the threads
    clip: str | None = "judge"  # the encoder that measures alignment, as for eval.score

    def chosen(self) -> dict[str, Method | None]:
        """The rows: a method, or None for a control. Raises :class:`OptionError` for one that is neither, or is wrong."""
        if unknown := [row for row in self.rows if row not in self.methods and row not in CONTROLS]:
            known = ", ".join([*self.methods, *CONTROLS])
            raise OptionError(f"rows={unknown} not known: choose of {known}, or define methods.NAME")
        methods = {name: method_of(name, told) for name, told in self.methods.items()}
        return {row: methods.get(row) for row in self.rows}


ConfigStore.instance().store(name="benchmark_schema", node=schema(BenchmarkOptions))


def benchmark(options: BenchmarkOptions, *, show: bool = True) -> list[dict[str, Any]]:
    """Run the whole set; returns what failed, as ``failed.json`` lists it: case, seed, method (or "tuning") and error."""
    rows = options.chosen()
    within("workers", options.workers, 1, math.inf)
    cases = [case for case in read_listing(instantiate(options.set)) if not options.only or case.name in options.only]
    if not cases:
        raise OptionError(f"only={options.only} names no case of the set")
    cases.sort(key=lambda case: -(case.frames or 0))  # the longest first, so that no worker is left alone with it
    jobs = [job for case in cases for job in _jobs(case, options)]
    _supersede(Path(options.folder), {job.home.name for job in jobs})
    failed: list[list[dict[str, Any]]] = [[] for _ in jobs]
    with _bars(show) as bars:
        left = [_left(job, rows) for job in jobs]
        bar, over = bars.add_task(f"0/{len(jobs)} cases", total=sum(left)), 0
        for number, step in steps_of(partial(_opened, options, rows, jobs[0]), jobs, options.workers):
            job = jobs[number]
            if step is None:
                _list(job, failed[number], [row for row, _ in wanted(job.case, rows)])
                bars.advance(bar, left[number])
                over += 1
            else:
                row, error = ("worker", str(step)) if isinstance(step, WorkerDiedError) else step
                if error is not None:
                    failed[number].append({"case": job.case.name, "seed": job.seed, "method": row, "error": error})
                    bars.console.print(f"{job.home.name} {row} failed: {error}", highlight=False, markup=False)
                bars.advance(bar, min(1, left[number]))
                left[number] = max(0, left[number] - 1)
            bars.update(bar, description=f"{over}/{len(jobs)} cases")
    return [entry for entries in failed for entry in entries]


def _opened(options: BenchmarkOptions, rows: Mapping[str, Method | None], job: Job) -> Callable[[Job], Iterator[Step]]:
    """What a process does with a case, with one set of encoders for all of them."""
    disable_progress_bar()  # two bars for each row, of weights that load in no time
    return partial(_run, rows=rows, measure=_measuring(job, options))


def _list(job: Job, wrong: list[dict[str, Any]], tried: list[str]) -> None:
    """Tell in the case's own folder what of it failed, so that benchmarks side by side don't overwrite each other's list.

    An earlier failure stays if its row was not ``tried`` now.
    """
    path = job.home / "failed.json"
    before = read_json(path)["failed"] if path.is_file() else []
    if left := [entry for entry in before if entry["method"] not in ("tuning", "worker", *tried)] + wrong:
        write_json(path, {"failed": left})
    else:
        path.unlink(missing_ok=True)


def _supersede(place: Path, homes: set[str]) -> None:
    """Take ``homes`` out of the list of failures that older versions kept for the whole benchmark."""
    path = place / "failed.json"
    if path.is_file():
        left = [entry for entry in read_json(path)["failed"] if entry["case"] not in homes]
        write_json(path, {"failed": left}) if left else path.unlink()


def _run(job: Job, rows: Mapping[str, Method | None], measure: Measure) -> Iterator[Step]:
    """Make what lacks of one case."""
    from eval.score import told_of

    fresh = not job.tuned
    try:
        job.tune()
    except Exception as error:
        log.debug("%s: tuning failed", job.home, exc_info=True)
        yield "tuning", _told(error)
        return
    if fresh:
        yield "tuning", None
    stale: set[str] = set()
    for row, method in wanted(job.case, rows):
        fresh, wrong = not job.stands(row), None
        try:
            job.edit(row, method) if method else job.control(row)
            job.label(row)
            stale = {name for name in (*stale, *measure(job, row)) if name.partition(".")[0] != row}
        except Exception as error:
            log.debug("%s: %s failed", job.home, row, exc_info=True)
            wrong = _told(error)
        if fresh or wrong:
            yield row, wrong
    for line in told_of(sorted(stale)):
        log.warning("%s: %s", job.home, line)


def _told(error: Exception) -> str:
    """An error in one line."""
    line = " ".join(str(error).split())
    return line if line and isinstance(error, ValueError) else f"{type(error).__name__}: {line}".rstrip(": ")


def _jobs(case: ListedCase, options: BenchmarkOptions) -> Iterator[Job]:
    place = Path(options.folder)
    for seed in options.seeds:
        home = place / (case.name if seed == options.seeds[0] else f"{case.name}-seed{seed}")
        given = [
            "+video=custom",
            f"video.name={case.name}",
            f"video.path={quoted(case.path)}",
            f"video.source_prompt={quoted(case.source_prompt)}",
            f"cache={quoted(place / 'cache')}",
            *options.overrides,
            *([f"video.frames={case.frames}"] if case.frames else []),
            f"seed={seed}",
        ]
        yield Job(case, seed, home, _composed(given))


def _composed(overrides: list[str]) -> DictConfig:
    """The configuration of ``tave.train``, inside of a Hydra door or without one."""
    if GlobalHydra.instance().is_initialized():
        return compose("train", overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides)


def _measuring(job: Job, options: BenchmarkOptions) -> Measure:
    """Measure a row, with one set of encoders for the whole benchmark: warnings are told once, what was taken out returned."""
    from eval.score import Toolbox

    metrics = typed(job.config).metrics
    tools, told = Toolbox(metrics.judge_folder, options.clip), set[str]()

    def measure(job: Job, row: str) -> list[str]:
        scores = job.score(row, tools) if metrics.enabled else None
        for line in scores.warnings if scores else []:
            if line not in told:
                log.warning("%s", line)
            told.add(line)
        return scores.stale if scores else []

    return measure


def _left(job: Job, rows: Mapping[str, Method | None]) -> int:
    return (not job.tuned) + sum(not job.stands(row) for row, _ in wanted(job.case, rows))


def _bars(show: bool) -> Progress:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # An edit takes minutes, so the speed is that of the whole time and not of the last half minute.
    console = Console(stderr=True, quiet=not show)
    return Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, speed_estimate_period=1e6)


def _door(cfg: DictConfig) -> None:
    if OmegaConf.is_missing(cfg.set, "folder"):
        raise OptionError("set.folder is not set: give set.folder=FOLDER, which holds cases.json or cases.yaml")
    options: BenchmarkOptions = typed(cfg)
    try:
        failed = benchmark(options)
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    print(options.folder)
    if failed:
        listed = ", ".join(f"{entry['case']}/{entry['method']}" for entry in failed)
        raise SystemExit(f"error: {len(failed)} failed, see failed.json in each case's folder in {options.folder}: {listed}")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="benchmark")
def main(cfg: DictConfig) -> None:
    guarded(_door, cfg)


if __name__ == "__main__":
    main()
