"""Measure a run folder, or bare files of any system.

    python -m tave.eval.score run=RUN_FOLDER
    python -m tave.eval.score edited=a.mp4 source=b.mp4 mask=m.mp4 target_image=t.png target_prompt="..."

A run's figures are merged into its ``metrics.json``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tave.cli import entry_point
from tave.config import ScoreOptions, judge_folder
from tave.files import check_place, prepare, write_json
from tave.record import REPORT, changed_metrics, check_links
from tave.report import write_report
from tave.summary import as_line

from . import EvalError, WeightsError
from .tables import BETTER

if TYPE_CHECKING:
    from .cases import Case
    from .measure import Report, Tools

log = logging.getLogger(__name__)

JUDGE = "judge"
FILES = ("edited", "source", "mask", "target_image", "matte", "source_prompt", "target_prompt")
FOOTAGE = "give clip=vit-l-14 (a name, or a folder)"


@dataclass
class Scores:
    """Figures of several edits: ``edits`` name -> metric -> value, ``metrics`` metric -> id, direction and unit."""

    edits: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, report: Report) -> None:
        """Add an edit's figures; raises :class:`EvalError` for a metric with another id than an earlier edit's."""
        for key, found in report.figures.items():
            facts = self.metrics.setdefault(key, found.facts())
            if facts != found.facts():
                raise EvalError(f"{name}: {key} would be {found.id} beside {facts['id']}: score them separately")
        self.edits[name] = {key: found.value for key, found in report.figures.items()}
        self.notes[name] = report.notes

    @property
    def warnings(self) -> list[str]:
        """Each note once that puts a figure in doubt, without those on missing figures."""
        from .measure import UNMEASURED

        found = dict.fromkeys(note for notes in self.notes.values() for note in notes)
        return [note for note in found if not note.startswith(UNMEASURED)]


@dataclass
class Toolbox:
    """Loads each network when the first edit needs it; the fields are those of :class:`ScoreOptions`."""

    judge: Path | None = None
    clip: str | None = None
    clip_sha256: str | None = None
    dino: str | None = None
    pickscore: str | None = None
    _loaded: dict[Any, Any] = field(default_factory=dict, repr=False)

    def measure(self, case: Case) -> Report:
        """All figures of one edit."""
        from .measure import measure

        tools = self._tools(drawn=case.truth is not None)
        try:
            report = measure(case, tools)
        except ValueError as error:
            raise EvalError(f"{case.name}: {error}") from error
        if self.clip == JUDGE and tools.clip and not case.truth:
            report.notes.append(f"the judge's encoder has only seen drawn vehicles and shoes: for footage {FOOTAGE}")
        return report

    def _tools(self, drawn: bool) -> Tools:
        from .encoders import Dino, Lpips, PickScore, load_encoder
        from .judge import load_judge
        from .measure import Tools

        by_judge = self.clip == JUDGE or (self.clip is None and drawn)
        judge = self._once(load_judge, self.judge) if drawn or by_judge else None
        clip = (judge.encoder if judge else None) if by_judge else self._once(load_encoder, self.clip, self.clip_sha256)
        hint = "not requested; give {}=FOLDER, or a name in the hub's local cache"
        remedy = {key: hint.format(key) for key in ("dino", "pickscore")} | {"clip": FOOTAGE}
        try:
            lpips = self._loaded.get(Lpips) or self._loaded.setdefault(Lpips, Lpips())
        except WeightsError as error:
            lpips, remedy["lpips"] = None, str(error)
        dino, pickscore = self._once(Dino, self.dino), self._once(PickScore, self.pickscore)
        return Tools(judge if drawn else None, clip, lpips, dino, pickscore, remedy)

    def _once(self, load: Callable[..., Any], name: Any, *more: Any) -> Any:
        """What ``load`` makes of ``name``; None for none."""
        if name is not None and load not in self._loaded:
            self._loaded[load] = load(name, *more)
        return self._loaded.get(load)


def score_run(
    run: Path, judge: Path | None, names: Collection[str] | None = None, clip: str | None = None,
    annotations: Path | None = None, scratch: Path | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Measure a run's edits (``names``, or all) from its files, and merge the figures into ``RUN/metrics.json``.

    ``judge`` is the judge's folder, ``clip`` the encoder as for :class:`Toolbox`, ``annotations`` a folder of masks
    of the source object in the clip as it was before the run read it. Frames lie in a temporary file in the folder
    ``scratch``, or in memory. Returns edit name -> metric name -> value (None where no pixel or frame counts). Raises
    ValueError for a file, array or class that is missing or doesn't fit.
    """
    scores = score_edits(run, Toolbox(judge, clip), names, annotations, scratch)
    for line in scores.warnings:
        log.warning("%s", line)
    return scores.edits


def score_edits(
    run: Path, tools: Toolbox, names: Collection[str] | None = None, annotations: Path | None = None,
    scratch: Path | None = None,
) -> Scores:  # fmt: skip
    """:func:`score_run` with a toolbox that may be shared between runs; the notes are left to the caller."""
    from tave.scratch import Scratch

    from .cases import read_cases

    check_links(run)
    scores = score_cases(read_cases(run, names, annotations, Scratch(scratch)), tools)
    merge_metrics(run / "metrics.json", scores.edits, scores.metrics)
    return scores


def score_cases(cases: Iterable[Case], tools: Toolbox) -> Scores:
    """Figures of all ``cases``."""
    scores = Scores()
    for case in cases:
        scores.add(case.name, tools.measure(case))
    return scores


def merge_metrics(path: Path, edits: dict[str, dict[str, Any]], metrics: dict[str, dict[str, Any]]) -> None:
    """Merge figures into a ``metrics.json``: values under ``edits.NAME``, their ids under ``metrics``.

    A metric has one id in the file. If it gets another, its older values are dropped from all edits, with a warning.
    """
    with changed_metrics(path.parent) as record:
        known, facts = record.get("edits", {}), record.get("metrics", {})
        changed = {name for name, about in metrics.items() if name in facts and facts[name].get("id") != about["id"]}
        other = [f"{edit}.{name}" for edit in known for name in sorted(changed & set(known[edit])) if edit not in edits]
        if other:
            log.warning("%s: dropped %s, measured under other ids; score the whole run again", path, ", ".join(other))
        kept = {edit: {key: v for key, v in figures.items() if key not in changed} for edit, figures in known.items()}
        merged = {edit: kept.get(edit, {}) | figures for edit, figures in edits.items()}
        record |= {"edits": kept | merged, "metrics": facts | metrics}


def table(scores: Scores) -> str:
    """The figures as text: name, value, unit and direction, then the notes."""
    lines = []
    for edit, found in scores.edits.items():
        lines.append(edit)
        for name, value in found.items():
            facts = scores.metrics[name]
            shown = "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
            lines.append(f"  {name:<40}{shown:>10}  {facts['unit']:<22}{BETTER[facts['higher_is_better']]}".rstrip())
        lines += [f"  {note}" for note in scores.notes[edit]]
    return "\n".join(lines)


def score(options: ScoreOptions) -> None:
    """Measure what ``options`` asks for, print the figures and where they are written; a run's report is renewed."""
    began = time.perf_counter()
    tools = Toolbox(judge_folder(options.judge), options.clip, options.clip_sha256, options.dino, options.pickscore)
    annotations = Path(options.annotations) if options.annotations else None
    given = [key for key in FILES if getattr(options, key) is not None]
    if options.run is not None:
        check_links(Path(options.run))  # before anything is removed or written there
    prepare(*(Path(place) for place in (options.run, options.out and Path(options.out).parent) if place))
    if options.out:
        check_place(Path(options.out))
    if options.run is not None:
        if given:
            raise EvalError(f"{', '.join(given)} given beside run: a run folder has its own; drop one or the other")
        scores = score_edits(Path(options.run), tools, annotations=annotations)
    elif options.edited is not None and options.source is not None:
        scores = score_cases([_bare(options, Path(options.edited), Path(options.source), annotations)], tools)
    else:
        raise EvalError("run is missing: give run=RUN_FOLDER, or edited=CLIP source=CLIP")
    if options.out:
        write_json(Path(options.out), {"edits": scores.edits, "metrics": scores.metrics})
    if options.run is not None and (Path(options.run) / REPORT).is_file():
        write_report(Path(options.run))
    if options.json:
        content = {"folder": options.run, "edits": list(scores.edits), "figures": scores.edits}
        print(as_line(content | {"warnings": scores.warnings, "seconds": round(time.perf_counter() - began, 3)}))
        return
    if not options.quiet:
        print(table(scores))
    for path in (options.run and Path(options.run) / "metrics.json", options.out):
        if path:
            print(path)


def _bare(options: ScoreOptions, edited: Path, source: Path, annotations: Path | None) -> Case:
    """The case of bare files."""
    from .cases import Request, read_files, read_mask, read_picture

    path, image, matte = (Path(value) if (value := getattr(options, key)) else None for key in FILES[2:5])
    if path is None and (options.object or options.mask_inverted):
        raise EvalError("object and mask_inverted say how to read the mask: give mask=... too")
    mask = partial(read_mask, path, number=options.object, inverted=options.mask_inverted) if path else None
    picture = read_picture(image, matte) if image else None
    request = Request(options.source_prompt, options.target_prompt, picture, "" if image else "give target_image=...")
    return read_files(edited, source, mask, request, annotations)


main = entry_point("measure edits", "score/score", lambda options, _: score(options))

if __name__ == "__main__":
    main()
