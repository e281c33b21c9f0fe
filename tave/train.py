"""The front door: tune on a clip, then make every edit that its config lists.

    python -m tave.train +video=bus_to_suv
    python -m tave.train +video=custom video.path=clip.mp4 video.source_prompt="..." \\
        video.target_image=car.png video.target_prompt="..."
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tave.config import CONF, TrainOptions, typed

log = logging.getLogger(__name__)


def train(options: TrainOptions, folder: Path, *, config: dict[str, Any] | None = None, show: bool = True) -> Path:
    """Tune and edit into ``folder``; returns it. With no edits listed, tune alone.

    ``config`` is what ``run.json`` keeps of how it was asked for.
    """
    from eval.score import score_run
    from tave.run import Run

    if _finished(options, folder, config or asdict(options)):
        log.info("%s is finished, nothing to do", folder)
        return folder
    run = Run.begin(options, folder, config=config, show=show)
    run.tune()
    requests = options.video.requests()
    if requests:
        run.predict(requests)
    if requests and options.metrics.enabled:
        with run.stages.stage("metrics", "measuring"):
            score_run(folder, options.metrics.judge_folder)
    run.record()
    return folder


def _finished(options: TrainOptions, folder: Path, config: dict[str, Any]) -> bool:
    """Whether all that is asked for stands in ``folder``, made under the same configuration: a job of a resumed sweep."""
    record, metrics = folder / "run.json", folder / "metrics.json"
    if not record.is_file() or not metrics.is_file():
        return False
    figures = json.loads(metrics.read_text()).get("edits", {})
    made = all(
        (folder / "edits" / name / "edit.json").is_file() and (figures.get(name) or not options.metrics.enabled)
        for name in options.video.requests()
    )
    return made and json.loads(record.read_text())["config"] == json.loads(json.dumps(config, default=str))


def guarded(door: Any, cfg: DictConfig) -> None:
    """Run a door; what a user can mend ends in one line and exit code 1, in a sweep the next job goes on."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        door(cfg)
    except SIGTERMException:
        raise SystemExit(143) from None
    except (ValueError, FileNotFoundError) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        log.debug("refused", exc_info=True)
        raise SystemExit(f"error: {error}") from None


def _door(cfg: DictConfig) -> None:
    options = typed(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    train(options, folder, config=OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    print(folder)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> None:
    guarded(_door, cfg)


if __name__ == "__main__":
    main()
