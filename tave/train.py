"""Entry point: tune on a clip, then make every edit that its configuration lists.

python -m tave.train video=bus_to_suv
python -m tave.train video=custom video.path=clip.mp4 video.source_prompt="..." \\
    video.target_image=car.png video.target_prompt="..."
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tave.cli import Context, entry_point
from tave.config import OptionError, TrainOptions
from tave.files import content_digest, naming
from tave.locks import all_claimed, claimed
from tave.record import changed_metrics, check_links, read_edit, read_metrics
from tave.summary import noted, say

if TYPE_CHECKING:
    from tave.run import Run


log = logging.getLogger(__name__)


def train(options: TrainOptions, folder: Path, *, chosen: Mapping[str, Any] | None = None, show: bool = True) -> Path:
    """Tune and edit into ``folder``; returns it. Without edits, tune alone. What is already made is not made again.

    ``chosen``: the experiment and overrides, for ``run.json``.
    """
    from tave.run import Run
    from tave.space import check_present

    requests = options.video.requests()
    if (name := options.metrics.objective) and not (requests and options.metrics.enabled):
        raise OptionError(f"metrics.objective={name}, but nothing is measured: request an edit and metrics, or drop it")
    check_links(folder)  # before anything is written there
    # a second process in this folder waits, and then finds everything made
    with (
        naming(folder),
        claimed(folder / "run.json", math.inf, log.warning),
        closing(Run.begin(options, folder, show=show)) as run,
    ):
        run.tune()
        with all_claimed([folder / "edits" / name for name in requests], math.inf, log.warning):
            run.predict(requests)
        check_present(folder)
        run.record(chosen)  # before measuring: an edit that can't be measured keeps its record
        if requests and options.metrics.enabled:
            measure_and_log(run, requests)
            run.record(chosen)
        report_on(run)
    return folder


def report_on(run: Run) -> None:
    """Write the report of an open run, if it is to have one."""
    from tave.report import write_report

    if run.options.report:
        with run.progress.stage("report", "writing the report", steps=False):
            write_report(run.folder)


def measure_and_log(run: Run, names: Collection[str]) -> None:
    """:func:`measure` edits of an open run, as a stage of it, and log the new figures."""
    with run.progress.stage("metrics", "measuring", steps=False):
        figures = measure(run.folder, run.options, names)
    if figures:
        run.log.log_figures(figures)


def measure(
    folder: Path, options: TrainOptions, names: Collection[str], annotations: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Measure those edits of the run ``folder`` among ``names`` whose figures are not in ``metrics.json`` yet.

    ``annotations``: folder of the source object's masks, for footage. Returns the new figures.
    """
    from tave.cache import key_of
    from tave.eval.score import score_run  # pyright: ignore[reportMissingImports]

    judge, clip = options.judge, options.metrics.clip
    tools = (content_digest(judge) if judge else None, clip, content_digest(annotations) if annotations else None)
    keys = {name: key_of(read_edit(folder / "edits" / name).get("key"), *tools) for name in names}
    known = read_metrics(folder).get("keys", {})
    due = [name for name in names if known.get(name) != keys[name]]
    if not due:
        return {}
    figures = score_run(folder, judge, due, clip, annotations, Path(options.cache))
    with changed_metrics(folder) as stored:
        stored["keys"] = stored.get("keys", {}) | {name: keys[name] for name in due}
    return figures


def objective(options: TrainOptions, folder: Path) -> float | None:
    """Mean over the edits of the figure ``metrics.objective``; None if it names none.

    Raises :class:`OptionError` if it was not measured for each of them.
    """
    name = options.metrics.objective
    if name is None:
        return None
    edits = read_metrics(folder).get("edits", {})
    measured = [edits.get(edit, {}) for edit in options.video.requests()]
    if not measured or any(not isinstance(figures.get(name), (int, float)) for figures in measured):
        known = sorted({key for figures in measured for key, v in figures.items() if isinstance(v, (int, float))})
        raise OptionError(f"metrics.objective={name} was not measured for every edit: choose one of {', '.join(known)}")
    return fmean(figures[name] for figures in measured)


def _work(options: TrainOptions, context: Context) -> float | None:
    chosen, folder = {"experiment": context.experiment, "overrides": context.overrides}, context.folder
    with noted(options.quiet) as notes:
        train(options, folder, chosen=chosen, show=not options.quiet)
    say(folder, list(options.video.requests()), notes, [folder], quiet=options.quiet, as_json=options.json)
    return objective(options, folder)


main = entry_point("tune on a clip and edit it", "train", _work)

if __name__ == "__main__":
    main()
