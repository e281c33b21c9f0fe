"""Door: one run folder -> its ``metrics.json``. ``python -m eval.score run=RUN_FOLDER``

The figures of an edit: :mod:`eval.preservation` always; :mod:`eval.regions`, :mod:`eval.ideal` and :mod:`eval.identity` where
the run holds a drawn clip's truth.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from eval import ideal, preservation, regions
from eval.cases import Case, RunError, Truth, read_cases
from eval.identity import Judge, judge_accuracies, load_judge

SHIPPED = "shipped"


@dataclass
class ScoreConfig:
    """Keys of ``conf/score.yaml``."""

    run: str = MISSING  # the run folder
    judge: str | None = SHIPPED  # "shipped": the judge that comes with tave; a folder; null: no judge


ConfigStore.instance().store(name="score_schema", node=ScoreConfig)


def score_run(run: Path, judge: Path | None, names: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Score a run's edits from its files alone, and merge the figures into ``RUN/metrics.json``.

    Args:
        run: the run folder.
        judge: folder of the judge; loaded only where an edit has a truth to be judged against. None: no judge.
        names: the edits to score; all of them by default.

    Returns:
        The ``edits`` part: edit name -> metric name -> figure (None where no pixel or frame counts).

    Raises:
        ValueError: one line that names the file, array or class that is missing or doesn't fit.
    """
    edits: dict[str, dict[str, Any]] = {}
    loaded: Judge | None = None
    for case in read_cases(run, names):
        if case.truth and judge and loaded is None:
            loaded = load_judge(judge)
        try:
            edits[case.name] = score_case(case, loaded)
        except ValueError as error:
            raise RunError(f"{run / 'edits' / case.name}: {error}") from error
    merge_metrics(run / "metrics.json", edits)
    return edits


def score_case(case: Case, judge: Judge | None) -> dict[str, Any]:
    """All figures of one edit; those that need a truth or a judge only where there is one."""
    scores: dict[str, Any] = {
        "background_psnr_outside_mask": preservation.background_psnr_outside_mask(case.edited, case.source, case.alpha)
    }
    if case.truth:
        scores |= _against_truth(case, case.truth)
        if judge:
            clips = {"": case.edited, "_ceiling": case.truth.ideal, "_floor": case.source}
            union = case.truth.source_mask | case.truth.target_mask
            scores |= judge_accuracies(judge, clips, union, case.truth.inside, case.truth.target)
    return scores


def _against_truth(case: Case, truth: Truth) -> dict[str, Any]:
    edited, old, new = case.edited, truth.source_mask, truth.target_mask
    mask = regions.pixels(case.mask, edited.shape[2], edited.shape[3])
    aligned = ideal.ideal_psnr_aligned(edited, truth.ideal, old, new, truth.layers)
    return {
        "background_psnr": preservation.background_psnr(edited, case.source, old, new),
        "mask_area_ratio": regions.mask_area_ratio(mask, old, new),
        "mask_recall": regions.mask_recall(mask, old),
        "mask_iou_union": regions.mask_iou_union(case.binary, old, new),
        # Source and ideal both as drawn: a codec's traces in the source clip would pull the edit towards it.
        "residue": ideal.residue(edited, truth.source, truth.ideal, old, new),
        "ideal_psnr": ideal.ideal_psnr(edited, truth.ideal, old, new),
        "ideal_psnr_aligned": aligned.psnr,
        "ideal_shift": [aligned.dx, aligned.dy],
    }


def merge_metrics(path: Path, edits: dict[str, dict[str, Any]]) -> None:
    """Put the figures under ``edits.NAME`` of a ``metrics.json``; what else it holds stays. The file is replaced at once.

    Raises:
        RunError: the file is there but doesn't hold a JSON object (with one under ``edits``).
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known = metrics.setdefault("edits", {})
        for name, scores in edits.items():
            known[name] = {**known.get(name, {}), **scores}
    except (ValueError, AttributeError, TypeError) as error:
        raise RunError(f"{path} doesn't hold metrics: move it away and score again ({error})") from error
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="score")
def main(config: DictConfig) -> None:
    """Score the run folder ``run`` and say where the figures are."""
    try:
        unknown = set(config) - {field.name for field in fields(ScoreConfig)}
        if unknown:
            raise RunError(f"unknown key {', '.join(map(str, sorted(unknown)))}: score takes run and judge")
        if OmegaConf.is_missing(config, "run"):
            raise RunError("run is missing: say python -m eval.score run=RUN_FOLDER")
        run, judge = Path(config.run), config.judge
        edits = score_run(run, shipped_judge() if judge == SHIPPED else Path(judge) if judge else None)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    for name, scores in edits.items():
        for key, value in scores.items():
            print(f"{name}.{key}: {round(value, 3) if isinstance(value, float) else value}")
    print(run / "metrics.json")


if __name__ == "__main__":
    main()
