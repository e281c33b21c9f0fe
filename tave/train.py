"""The front door: tune on a clip, then make every edit that its config lists.

    python -m tave.train +video=bus_to_suv
    python -m tave.train +video=custom video.path=clip.mp4 video.source_prompt="..." \\
        video.target_image=car.png video.target_prompt="..."
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tave.cache import read_json
from tave.config import CONF, TrainOptions, chosen, typed
from tave.files import file_digest
from tave.options import OptionError, known

log = logging.getLogger(__name__)

OUT_OF_MEMORY = (
    "the GPU's memory is full: set memory=16gb, 12gb or 8gb (python -m tave.doctor says which suits), fewer video.frames, "
    "or a smaller video.width and video.height"
)


def train(
    options: TrainOptions,
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    chosen: dict[str, Any] | None = None,
    show: bool = True,
) -> Path:
    """Tune and edit into ``folder``; returns it. With no edits listed, tune alone.

    ``config`` is what ``run.json`` keeps of how it was asked for, ``chosen`` in whose words (:func:`tave.config.chosen`).
    """
    from eval.score import score_run
    from tave.run import Run

    _check_objective(options)
    if _finished(options, folder, config or asdict(options)):
        log.info("%s is finished, nothing to do", folder)
        return folder
    with closing(Run.begin(options, folder, config=config, show=show)) as run:
        run.tune()
        requests = options.video.requests()
        if requests:
            run.predict(requests)
        run.record(chosen, unmeasured=requests)  # now: a figure that can't be measured costs no edit its record
        if requests and options.metrics.enabled:
            with run.stages.stage("metrics", "measuring"):
                run.report.measured(score_run(folder, options.metrics.judge_folder, list(requests)))
            run.record(chosen)
    return folder


def _finished(options: TrainOptions, folder: Path, config: dict[str, Any]) -> bool:
    """Whether all that is asked for stands in ``folder``, made by the same weights, inputs and configuration.

    A resumed sweep skips such a job. Weights are compared where they lie in a folder: a hub's copy is kept by its content,
    and tests' are drawn anew. What no record tells of contradicts nothing.
    """
    from tave.run import input_digests

    record, metrics = folder / "run.json", folder / "metrics.json"
    if not record.is_file() or not metrics.is_file():
        return False
    figures = read_json(metrics).get("edits", {})
    made = all(
        (folder / "edits" / name / "edit.json").is_file() and (figures.get(name) or not options.metrics.enabled)
        for name in options.video.requests()
    )
    told = read_json(record)
    places = {"weights": options.backbone.get("path", ""), "segmenter": options.reference.segmenter}
    files = {Path(str(at)) / file: sha for key, at in places.items() for file, sha in told.get(key, {}).items()}
    if not made or any(file.is_file() and file_digest(file) != sha for file, sha in files.items()):
        return False
    if any(told.get("inputs", {}).get(path, sha) != sha for path, sha in input_digests(options).items()):
        return False
    return _deciding(told["config"]) == _deciding(json.loads(json.dumps(config, default=str)))


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration decides the files: neither who is told of them nor what a search looks at."""
    metrics = {key: value for key, value in config["metrics"].items() if key != "objective"}
    return {key: value for key, value in config.items() if key != "logger"} | {"metrics": metrics}


def _check_objective(options: TrainOptions) -> None:
    """Raise :class:`OptionError` for a ``metrics.objective`` that no edit can have; whether each has it is known afterwards."""
    from eval.metric import ClipMetric

    if (name := options.metrics.objective) is None:
        return
    if not options.metrics.enabled or not options.video.requests():
        raise OptionError(f"metrics.objective={name}, but nothing is measured: ask for an edit and its metrics, or drop it")
    kinds: list[type[ClipMetric]] = ClipMetric.__subclasses__()
    for kind in kinds:
        kinds += kind.__subclasses__()
    compared = [f"{kind.name}_{reference}" for kind in kinds for reference in ("source", "ideal", "floor", "ceiling")]
    known(f"metrics.objective={name} is no figure", name, {"judge_frames", *(kind.name for kind in kinds), *compared})


def objective(options: TrainOptions, folder: Path) -> float | None:
    """Mean over the edits of the figure ``metrics.objective``; None if it names none.

    Raises :class:`OptionError` if it was not measured of each of them.
    """
    name = options.metrics.objective
    if name is None:
        return None
    edits = read_json(folder / "metrics.json").get("edits", {})
    measured = [edits.get(edit, {}) for edit in options.video.requests()]
    if not measured or any(not isinstance(figures.get(name), (int, float)) for figures in measured):
        known = ", ".join(sorted({key for figures in measured for key, v in figures.items() if isinstance(v, (int, float))}))
        raise OptionError(f"metrics.objective={name} was not measured of every edit: choose one of {known or 'none'}")
    return fmean(figures[name] for figures in measured)


def guarded(door: Callable[[DictConfig], float | None], cfg: DictConfig) -> float | None:
    """Run a door; what a user can mend ends in one line and exit code 1, in a sweep the next job goes on.

    Returns what the door returns: for a search, the value to optimise.
    """
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        return door(cfg)
    except SIGTERMException:
        raise SystemExit(143) from None
    except (ValueError, FileNotFoundError, torch.OutOfMemoryError) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        log.debug("refused", exc_info=True)
        told = OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else error
        raise SystemExit(f"error: {told}") from None


def _door(cfg: DictConfig) -> float | None:
    options = typed(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    told: Any = OmegaConf.to_container(cfg, resolve=True)
    try:
        train(options, folder, config=told, chosen=chosen())
    except ValueError:
        with suppress(OSError):
            folder.rmdir()  # Hydra made it; it goes if it is empty
        raise
    print(folder)
    return objective(options, folder)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float | None:
    return guarded(_door, cfg)


if __name__ == "__main__":
    main()
