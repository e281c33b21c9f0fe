"""Entry point: every case of a set, edited by every method and every control, measured; resumable.

python -m tave.benchmark set=small workers=2
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from tave.cli import Context, compose_config, entry_point, resolved, typed
from tave.config import (
    CONF,
    OURS,
    BenchmarkOptions,
    EditEntry,
    MethodOptions,
    OptionError,
    TrainOptions,
    check_name,
)
from tave.edit import changed, edit
from tave.files import content_digest, prepare, write_json
from tave.interrupts import at_once, follow_parent
from tave.keys import quoted
from tave.listing import ListedCase, listing_of, read_listing
from tave.record import SUMS, read_edit, rewriting

if TYPE_CHECKING:
    from torch import Tensor

    from tave.pipeline import Pipeline, Target
    from tave.video import Clip

log = logging.getLogger(__name__)

CONTROLS = ("source_unchanged", "frozen_first_frame", "pasted", "pasted_true_pose", "per_frame")
KILLED = "a worker process was killed, perhaps for lack of memory: run the same command with fewer workers"
EDITING = ("reference", "mask", "correction", "sampler")  # what may differ between methods: edits share one tuned clip


@dataclass(frozen=True)
class Job:
    """A case under one seed. ``home`` is its run folder; ``methods`` in order, None for a control."""

    case: ListedCase
    seed: int
    home: Path
    options: BenchmarkOptions

    @property
    def label(self) -> dict[str, Any]:
        """What ``edit.json`` records of the case, for tables."""
        return {"case": self.case.name, "group": list(self.case.groups), "seed": self.seed}


def benchmark(options: BenchmarkOptions, *, show: bool = True) -> list[dict[str, Any]]:
    """Run the whole set; returns what failed: case, seed, method (or "tuning") and error.

    What is already made is not made again; a failure is recorded in its case's ``failed.json`` and the rest continues.
    """
    check_methods(options)
    prepare(Path(options.folder))
    cases = [case for case in read_listing(_listing(options)) if not options.only or case.name in options.only]
    if unknown := sorted(set(options.only) - {case.name for case in cases}):
        raise OptionError(f"only={unknown}: no such case in the set")
    if not cases:
        raise OptionError(f"{options.set.folder} lists no case: see docs/external_sets.md")
    cases.sort(key=lambda case: -(case.frames or 0))  # the longest first, so that no worker is left alone with it
    jobs = [Job(case, seed, _home(options, case, seed), options) for case in cases for seed in options.seeds]
    homes = [job.home for job in jobs]
    if shared := next((home for home in homes if homes.count(home) > 1), None):
        raise OptionError(f"{shared} would hold two runs: give each seed once, and no case another's name with -seedN")
    failed: list[dict[str, Any]] = []
    with closing(_finished(jobs, options.workers)) as finished:
        for done, (job, wrong) in enumerate(finished, 1):
            failed += wrong
            if show:
                result = "failed: " + ", ".join(entry["method"] for entry in wrong) if wrong else "done"
                print(f"[{done}/{len(jobs)}] {job.home.name}: {result}", file=sys.stderr, flush=True)
    return failed


def _listing(options: BenchmarkOptions) -> Path:
    chosen = options.set
    if chosen.kind == "folder":
        return listing_of(str(chosen.folder))
    from tave.roadside.files import draw_set

    return draw_set(chosen.folder or Path(options.folder) / "cases", chosen.size, chosen.which, options.only)


def _home(options: BenchmarkOptions, case: ListedCase, seed: int) -> Path:
    return Path(options.folder) / (case.name if seed == options.seeds[0] else f"{case.name}-seed{seed}")


def _finished(jobs: list[Job], workers: int) -> Generator[tuple[Job, list[dict[str, Any]]], None, None]:
    """Run the jobs, in this process or in ``workers`` processes with an equal share of the threads; yield them as they
    end. What ends this process ends the workers at their next step.
    """
    if workers == 1 or len(jobs) == 1:
        yield from ((job, run_case(job)) for job in jobs)
        return
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    # forked processes would hang in the threads of their parent
    with ProcessPoolExecutor(workers, get_context("spawn"), partial(_begin_worker, threads)) as pool:
        waiting = {pool.submit(_in_worker, job): job for job in jobs}
        try:
            for future in as_completed(waiting):
                job = waiting[future]
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    yield job, [{"case": job.case.name, "seed": job.seed, "method": "worker", "error": KILLED}]
        except BaseException:
            for worker in active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    follow_parent()


def _in_worker(job: Job) -> list[dict[str, Any]]:
    with at_once():
        return run_case(job)


def run_case(job: Job) -> list[dict[str, Any]]:
    """Make and measure what is missing of one case; returns the failures, which are also in ``failed.json``."""
    failed = []

    def attempt(method: str, work: Any) -> bool:
        try:
            work()
            return True
        except Exception as error:
            log.debug("%s: %s failed", job.home, method, exc_info=True)
            line = " ".join(str(error).split()) or type(error).__name__
            line = line if isinstance(error, ValueError) else f"{type(error).__name__}: {line}"
            failed.append({"case": job.case.name, "seed": job.seed, "method": method, "error": line})
            return False

    if attempt("tuning", lambda: tune(job)):
        known = bool(job.case.truth or job.case.annotations)
        for name in job.options.methods:
            method = job.options.define.get(name)
            if method is None:
                attempt(name, lambda name=name: control(job, name))
            elif known or not method.oracle:
                attempt(name, lambda name=name, method=method: edit_by(job, name, method))
    path = job.home / "failed.json"
    with rewriting(job.home, path.name):
        if failed:
            write_json(path, {"failed": failed})
        else:
            path.unlink(missing_ok=True)
    return failed


# ---- methods ---------------------------------------------------------------------------------------------------------


def check_methods(options: BenchmarkOptions) -> None:
    """Raise :class:`OptionError` for an unknown method or option, or a method that changes options of the tuning."""
    if unknown := [name for name in options.methods if name not in options.define and name not in CONTROLS]:
        known = ", ".join([*options.define, *CONTROLS])
        raise OptionError(f"methods={unknown} are not known: choose from {known}, or define.NAME={{overrides: [...]}}")
    listed = ListedCase("any", "any.mp4", "any", "any.png", "any")
    any_case = Job(listed, options.seeds[0], Path(options.folder), options)
    _options(any_case)
    for name in options.methods:
        check_name(f"methods: {name!r}", name)
        if method := options.define.get(name):
            _options(any_case, _overrides(name, method))


def _overrides(name: str, method: MethodOptions) -> list[str]:
    """A method's overrides for ``tave.edit``, its experiment's first."""
    words = list(method.overrides)
    if method.experiment:
        path = CONF / "experiment" / f"{method.experiment}.yaml"
        if not path.is_file():
            raise OptionError(f"define.{name}.experiment={method.experiment}: no such file in conf/experiment")
        groups: Any = OmegaConf.to_container(OmegaConf.load(path))
        words = [f"{g}.{key}={_text(value)}" for g, keys in groups.items() for key, value in keys.items()] + words
    if early := sorted({word.partition(".")[0] for word in words} - {*EDITING}):
        raise OptionError(f"define.{name} changes {', '.join(early)}: use overrides=[...] in a separate benchmark")
    return words


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def tune(job: Job) -> None:
    """Tune on the case's clip, unless its run folder holds that tuning."""
    from tave.train import train

    train(_options(job), job.home, show=False)


def _options(job: Job, overrides: Sequence[str] = ()) -> TrainOptions:
    """The options of a case's tuning, under the ``overrides`` of an edit."""
    case, options = job.case, job.options
    given = (
        "+video=custom",
        f"video.name={case.name}",
        f"video.path={quoted(case.path)}",
        f"video.source_prompt={quoted(case.source_prompt)}",
        f"cache={quoted(Path(options.folder) / 'cache')}",
        f"metrics.clip={'null' if options.clip is None else quoted(options.clip)}",
        "logger=none",
        "report=false",
        "video.crop=frame",  # one part for all methods
        *options.overrides,
        *([f"video.frames={case.frames}"] if case.frames else []),
        f"seed={job.seed}",
    )
    return typed(changed(_composed(given), overrides))


@lru_cache(1)  # composing takes as long as a small edit, and a case's edits have one configuration
def _composed(given: tuple[str, ...]) -> dict[str, Any]:
    return resolved(compose_config("train", given))


def edit_by(job: Job, name: str, method: MethodOptions) -> None:
    """Make and measure a method's edit, unless it is there."""
    from tave.controls import true_region

    options = _options(job, _overrides(name, method))
    case = job.case
    entry = EditEntry(case.target_image, case.target_prompt, case.matte, truth=case.truth)
    if method.oracle:
        entry = replace(entry, mask=str(true_region(job.home, case, options.video)))
    options = replace(options, video=replace(options.video, edits={name: entry}))
    about = {"benchmark": job.label | {"method": name}}
    edit(
        job.home,
        replace(options, metrics=replace(options.metrics, enabled=False)),
        about=about,
        overwrite=True,
        show=False,
    )
    _measure(job, options, name)


def control(job: Job, name: str) -> None:
    """Make and measure a control, unless it is there and was made from the current edit of the method ``tave``.

    A control that needs a known answer is left out of cases without one.
    """
    from tave.cache import is_made, key_of
    from tave.controls import make, possible

    if not possible(name, job.case):
        return
    ours = job.home / "edits" / OURS / "edit.json"
    if not ours.is_file():
        raise OptionError(f"{job.home}: the control {name} uses the masks of {OURS}, which has not run: run both")
    options = _options(job)
    known = [content_digest(path) for path in (job.case.truth, job.case.annotations) if path]
    key = key_of(name, read_edit(ours.parent)["key"], known)
    path = job.home / "edits" / name / "edit.json"
    if not is_made(path, key):
        with rewriting(job.home, f"edits/{name}/{SUMS}"):
            make(name, job.home, job.case, _frame_editor(job, options))
            with rewriting(path.parent, path.name):
                write_json(path, read_edit(path.parent) | {"key": key, "benchmark": job.label | {"method": name}})
    _measure(job, options, name)


def _frame_editor(job: Job, options: TrainOptions) -> Callable[[Clip], Tensor]:
    """Edits a clip of one frame, to `1 3 H W`, by the untuned image model, by the method otherwise."""
    from tave.build import build_editor
    from tave.pipeline import Target
    from tave.reference import TargetImage
    from tave.video import read_image, read_matte

    case = job.case

    @cache  # the model is loaded at the first frame, once for all
    def loaded() -> tuple[Pipeline, Target]:
        rgb, alpha = read_image(case.target_image)
        image = TargetImage(rgb, alpha, read_matte(case.matte) if case.matte else None)
        alone = replace(options, tuning=replace(options.tuning, trainables="none"))
        return build_editor(alone, 1).pipeline, Target("alone", case.target_prompt, [image])

    def edit_frame(clip: Clip) -> Tensor:
        pipeline, target = loaded()
        source = pipeline.encode(clip, case.source_prompt)
        return pipeline.edit(source, pipeline.invert(source), target).frames

    return edit_frame


def _measure(job: Job, options: TrainOptions, name: str) -> None:
    from tave.train import measure

    if options.metrics.enabled:
        measure(job.home, options, [name], _annotations(job.case))


def _annotations(case: ListedCase) -> Path | None:
    return Path(case.annotations) if case.annotations and not case.truth else None


def _work(options: BenchmarkOptions, context: Context) -> None:
    failed = benchmark(options)
    print(options.folder)
    if failed:
        for entry in failed:
            print(f"  {entry['case']}, seed {entry['seed']}, {entry['method']}: {entry['error']}", file=sys.stderr)
        raise OptionError(f"{len(failed)} failed, as listed above and in failed.json in each case's folder")


main = entry_point("run a benchmark", "benchmark", _work)

if __name__ == "__main__":
    main()
