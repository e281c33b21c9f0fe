"""Door: files -> figures, for a run folder or for bare files of any system.

    python -m eval.score run=RUN_FOLDER
    python -m eval.score edited=a.mp4 source=b.mp4 mask=m.mp4 target_image=t.png target_prompt="..." [out=figures.json]

What is measured, and where: :mod:`eval.figures`. A run's figures are merged into its ``metrics.json``.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from .cases import Case, read_cases, read_files
from .extras import Dino, PickScore
from .features import load_encoder
from .figures import Sheet, Tools, measure
from .identity import Judge, load_judge
from .metric import Figure
from .perceptual import Lpips, find_trunk
from .records import RunError, read_record_if_any
from .weights import WeightsError
from tave.files import content_digest, whole_file

log = logging.getLogger(__name__)

SHIPPED, JUDGE = "shipped", "judge"
UNMEASURED = "not measured: "  # how a note begins that says why there is no figure


@dataclass
class ScoreConfig:
    """Keys of ``conf/score/score.yaml``."""

    run: str | None = None  # the run folder, or instead of it bare files:
    edited: str | None = None  # the edited clip: a video or a folder of numbered pictures
    source: str | None = None  # the clip that was edited, same frames and size
    mask: str | None = None  # where the edit is, white inside
    target_image: str | None = None
    matte: str | None = None  # the object's silhouette in the target image, if that has no alpha
    source_prompt: str | None = None
    target_prompt: str | None = None
    annotations: str | None = None  # folder of the source object's masks, one picture a frame, as DAVIS has them
    judge: str | None = SHIPPED  # "shipped": the judge that comes with tave; a folder; null: no judge
    clip: str | None = JUDGE  # "judge": the judge's encoder; or what load_encoder takes; null: none
    clip_sha256: str | None = None  # the hash that the encoder's weights must have
    dino: str | None = None  # folder or cached hub name of a DINO; null: none
    pickscore: str | None = None  # folder or cached hub name of PickScore; null: none
    out: str | None = None  # a JSON file for the figures, laid out like metrics.json



FILES = ("edited", "source", "mask", "target_image", "matte", "source_prompt", "target_prompt")


@dataclass
class Scores:
    """Figures of several edits: ``edits`` name -> metric -> value, ``metrics`` metric -> id, direction and unit.

    ``stale``: EDIT.METRIC of what their run had measured under other ids, and has no more.
    """

    edits: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)

    def add(self, name: str, figures: dict[str, Figure], notes: list[str]) -> None:
        self.edits[name] = {key: found.value for key, found in figures.items()}
        for key, found in figures.items():
            about = {"id": found.id, "higher_is_better": found.higher_is_better, "unit": found.unit}
            if self.metrics.setdefault(key, about) != about:
                raise RunError(f"{name}: {key} would be {found.id} beside {self.metrics[key]['id']}: score them apart")
        self.notes[name] = notes

    @property
    def warnings(self) -> list[str]:
        """Each note once that puts a figure in doubt: not those that say why there is none."""
        found = dict.fromkeys(note for notes in self.notes.values() for note in notes)
        return [note for note in found if not note.startswith(UNMEASURED)]


class Toolbox:
    """Loads what measures when the first edit needs it, once.

    Args:
        judge: the judge's folder; None: no judge.
        clip: "judge" for the judge's encoder, what :func:`eval.features.load_encoder` takes, or None.
        clip_sha256: the hash that the encoder's weights must have.
        dino: folder or cached hub name.
        pickscore: folder or cached hub name.
    """

    def __init__(
        self,
        judge: Path | None,
        clip: str | None = JUDGE,
        clip_sha256: str | None = None,
        dino: str | None = None,
        pickscore: str | None = None,
    ) -> None:
        self.judge, self.clip, self.clip_sha256, self.dino, self.pickscore = judge, clip, clip_sha256, dino, pickscore
        self._tools: Tools | None = None

    def measure(self, case: Case) -> Sheet:
        """All figures of one edit."""
        self._tools = self._tools or self._loaded()
        sheet = measure(case, self._tools)
        if self.clip == JUDGE and self._tools.clip and not case.truth:
            sheet.notes.append("the judge's encoder has seen drawn vehicles only: for footage give clip=NAME, as in vit-l-14")
        return sheet

    def imprint(self, edited: Path, annotations: Path | None = None) -> dict[str, str | None]:
        """What an edit's figures depend on, as ``metrics.json`` keeps it beside them: by content where there is any.

        Args:
            edited: the edited clip's file.
            annotations: folder of the source object's masks, if it is measured against them.
        """
        drawn = content_digest(annotations) if annotations else None
        return {"edited": content_digest(edited), "clip": self.clip, "judge": self._judge_digest, "annotations": drawn}

    @cached_property
    def _judge_digest(self) -> str | None:
        return content_digest(self.judge) if self.judge and self.judge.exists() else None

    def _loaded(self) -> Tools:
        judge: Judge | None = load_judge(self.judge) if self.judge else None
        why = {"clip": "no encoder; give clip=NAME" if self.clip != JUDGE else "no judge; give clip=NAME or a judge"}
        why["dino"] = "not asked for; give dino=FOLDER, weights that are on this disk"
        why["pickscore"] = "not asked for; give pickscore=FOLDER, weights that are on this disk"
        lpips = None
        try:
            lpips = Lpips(find_trunk())
        except WeightsError as error:
            why["lpips"] = str(error)
        clip = judge.encoder if judge and self.clip == JUDGE else None
        return Tools(
            judge=judge,
            clip=load_encoder(self.clip, self.clip_sha256) if self.clip and self.clip != JUDGE else clip,
            lpips=lpips,
            dino=Dino(self.dino) if self.dino else None,
            pickscore=PickScore(self.pickscore) if self.pickscore else None,
            why=why,
        )


def score_run(
    run: Path,
    judge: Path | None,
    names: Collection[str] | None = None,
    clip: str | None = JUDGE,
    annotations: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Score a run's edits from its files alone, and merge the figures into ``RUN/metrics.json``.

    Args:
        run: the run folder.
        judge: folder of the judge. None: no judge.
        names: the edits to score; all of them by default.
        clip: the encoder, as for :class:`Toolbox`.

    Returns:
        The ``edits`` part: edit name -> metric name -> figure (None where no pixel or frame counts).

    Raises:
        ValueError: one line that names the file, array or class that is missing or doesn't fit.
    """
    scores = score_edits(run, Toolbox(judge, JUDGE if clip == "auto" else clip), names, annotations)
    for line in [*scores.warnings, *told_of(scores.stale)]:
        log.warning("%s", line)
    return scores.edits


def score_edits(run: Path, tools: Toolbox, names: Collection[str] | None = None, annotations: Path | None = None) -> Scores:
    """:func:`score_run` with a toolbox that may be shared, and without a word: it is the caller who tells of warnings."""
    scores = score_cases(read_cases(run, names, annotations), tools, run / "edits")
    measured = {name: tools.imprint(run / "edits" / name / "edited.mp4", annotations) for name in scores.edits}
    scores.stale = merge_metrics(run / "metrics.json", scores.edits, scores.metrics, measured)
    return scores


def told_of(stale: Collection[str]) -> list[str]:
    """What :func:`merge_metrics` took out, in a line; no line where that is nothing."""
    return [f"taken out, measured under other ids: {', '.join(stale)}; score the whole run to have it back"] * bool(stale)


def score_cases(cases: Iterable[Case], tools: Toolbox, place: Path | None = None) -> Scores:
    """Figures of all ``cases``; what is wrong with one is said with its name, under ``place`` if that is given."""
    scores = Scores()
    for case in cases:
        try:
            sheet = tools.measure(case)
            scores.add(case.name, sheet.figures, sheet.notes)
        except WeightsError:
            raise
        except ValueError as error:
            raise RunError(f"{place / case.name if place else case.name}: {error}") from error
    return scores


def merge_metrics(
    path: Path,
    edits: dict[str, dict[str, Any]],
    metrics: dict[str, dict[str, Any]] | None = None,
    measured: dict[str, dict[str, str | None]] | None = None,
) -> list[str]:
    """Put the figures under ``edits.NAME`` of a ``metrics.json``, what they are under ``metrics``, what they were measured on
    (:meth:`Toolbox.imprint`) under ``measured.NAME``; what else it holds stays, but of an edit that was made anew.

    One name has one id in the whole file: where it gets another, the other edits' figures of that name are taken out. The file
    is replaced at once.

    Returns:
        EDIT.METRIC of what was taken out: to have it back, score the whole run.

    Raises:
        RunError: the file is there but doesn't hold a JSON object (with one under ``edits``).
    """
    metrics, stale = metrics or {}, []
    try:
        stored = read_record_if_any(path)
        known, told = stored.setdefault("edits", {}), stored.get("metrics", {})
        changed = {name for name, about in metrics.items() if told.get(name, {}).get("id") != about["id"]}
        for other in set(known) - set(edits):
            stale += [f"{other}.{name}" for name in sorted(changed & set(known[other]))]
            known[other] = {name: value for name, value in known[other].items() if name not in changed}
        on = stored.get("measured", {})
        for name, scores in edits.items():
            before, now = (told_on.get(name, {}).get("edited") for told_on in (on, measured or {}))
            known[name] = scores if before and now and before != now else {**known.get(name, {}), **scores}
        if on or measured:
            stored["measured"] = {name: told for name, told in on.items() if name not in edits} | (measured or {})
        if metrics:
            stored["metrics"] = {**told, **metrics}
    except (ValueError, AttributeError, TypeError) as error:
        raise RunError(f"{path} doesn't hold metrics: move it away and score again ({error})") from error
    _write(path, stored)
    return sorted(stale)


def _write(path: Path, content: dict[str, Any]) -> None:
    if not path.parent.is_dir():
        raise RunError(f"{path} can't be written: there is no folder {path.parent}")
    with whole_file(path) as waiting:
        waiting.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def table(scores: Scores) -> str:
    """The figures as text: name, value, unit and which direction is better; below them what was not measured."""
    lines = []
    for edit, found in scores.edits.items():
        lines.append(edit)
        for key, value in found.items():
            about = scores.metrics[key]
            better = {True: "higher is better", False: "lower is better", None: ""}[about["higher_is_better"]]
            shown = "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
            lines.append(f"  {key:<40}{shown:>10}  {about['unit']:<22}{better}".rstrip())
        lines += [f"  {note}" for note in scores.notes[edit]]
    return "\n".join(lines)


def conf_folder() -> Path:
    """The checkout's ``conf/``, or the copy inside the package where tave is installed from a wheel."""
    checkout = _package().parent / "conf"
    return checkout if (checkout / "train.yaml").is_file() else _package() / "conf"


def shipped_judge() -> Path:
    """Folder of the judge that comes with tave."""
    return _package() / "roadside" / "weights" / "judge"


def _package() -> Path:
    spec = importlib.util.find_spec("tave")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("tave isn't installed: run make setup")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def score(config: DictConfig) -> None:
    """Score what ``config`` asks for, print the table and say where the figures are.

    Raises:
        ValueError: one line for the user.
    """
    known = [entry.name for entry in fields(ScoreConfig)]
    if unknown := set(config) - set(known):
        raise RunError(f"unknown key {', '.join(map(str, sorted(unknown)))}: score takes {', '.join(known)}")
    asked = ScoreConfig(**OmegaConf.to_container(config))  # type: ignore[arg-type]
    paths = {key: getattr(asked, key) for key in FILES}
    judge = shipped_judge() if asked.judge == SHIPPED else Path(asked.judge) if asked.judge else None
    tools = Toolbox(judge, asked.clip, asked.clip_sha256, asked.dino, asked.pickscore)
    annotations = Path(asked.annotations) if asked.annotations else None
    if asked.run is not None:
        if given := [key for key, value in paths.items() if value is not None]:
            raise RunError(f"{', '.join(given)} given beside run: a run folder has its own; drop one or the other")
        run = Path(asked.run)
        scores = score_edits(run, tools, annotations=annotations)
    elif asked.edited is not None and asked.source is not None:
        prompts = {key: paths.pop(key) for key in ("source_prompt", "target_prompt")}
        files = {key: Path(value) for key, value in paths.items() if value is not None}
        scores = score_cases([read_files(**files, **prompts, annotations=annotations)], tools)
    else:
        raise RunError("run is missing: say python -m eval.score run=RUN_FOLDER, or give edited=CLIP source=CLIP")
    print("\n".join([table(scores), *told_of(scores.stale)]))
    if asked.out:
        _write(Path(asked.out), {"edits": scores.edits, "metrics": scores.metrics})
    for path in (Path(asked.run) / "metrics.json" if asked.run is not None else None, asked.out):
        if path:
            print(path)


@hydra.main(version_base="1.3", config_path=str(conf_folder() / "score"), config_name="score")
def main(config: DictConfig) -> None:
    """The door: what a user can mend ends in one line."""
    try:
        score(config)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
