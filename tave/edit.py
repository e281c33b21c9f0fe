"""The second door: another edit of a clip that is already tuned, without tuning or inverting again.

    python -m tave.edit run=outputs/bus_to_suv/... video.target_image=van.png video.target_prompt="a blue van ..."

Options that aren't given are those of the run; any of mask, correction, sampler and reference may be given anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tave.cache import StoredError
from tave.config import CONF, TrainOptions, schema, typed
from tave.options import OptionError
from tave.train import guarded
from tave.video import ReadOptions, read_clip

MOVABLE = ("backbone.path", "backbone.adapter")  # moved weights are compared by their hashes


def edit(folder: Path, options: TrainOptions, *, overrides: Sequence[str] = (), show: bool = True) -> list[str]:
    """Make the edits that ``options`` ask for in the run ``folder``; returns their names. Earlier edits are kept.

    ``overrides``: what of them was asked for otherwise than in the run, for ``edit.json``.
    """
    from eval.score import score_run
    from tave.run import Run
    from tave.stages import Stages

    wanted = options.video.requests()
    if not wanted:
        raise OptionError("no edit is asked for: give video.target_image=... and video.target_prompt=...")
    named = {_free(folder / "edits", name): entry for name, entry in wanted.items()}
    clip = read_clip(folder / "source.mp4", ReadOptions(frames=None, multiple=1))
    with closing(Run(options, folder, clip, Stages(show=show), None)) as run:
        run.load(folder / "tuned.safetensors")
        run.overrides = list(overrides)
        run.predict(named)
        if options.metrics.enabled:
            run.report.measured(score_run(folder, options.metrics.judge_folder, list(named)))
    return list(named)


def recorded(folder: Path) -> DictConfig:
    """The configuration of the run in ``folder``, under today's schema and without its edits."""
    path = folder / "run.json"
    if not path.is_file():
        raise StoredError(f"{folder}: no finished run (run.json is missing); give the folder that tave.train printed")
    stored = json.loads(path.read_text())["config"]
    asked = dict.fromkeys(("target_image", "target_prompt", "matte", "mask", "edit"))  # they were the old edit's own
    stored["video"] = {**stored["video"], "edits": {}, **asked}
    return OmegaConf.merge(schema(TrainOptions), stored)  # type: ignore[return-value]


def _free(edits: Path, name: str) -> str:
    """``name``, or the first ``name-2``, ``name-3``, ... that no earlier edit has."""
    found, count = name, 1
    while (edits / found).exists():
        count += 1
        found = f"{name}-{count}"
    return found


def _door(cfg: DictConfig) -> None:
    if OmegaConf.is_missing(cfg, "run"):
        raise OptionError("run is not set: give run=FOLDER, the folder that tave.train printed last")
    folder = Path(cfg.run)
    merged = recorded(folder)
    groups = {"video", "mask", "correction", "sampler", "reference", "metrics", "logger", "trainer", "memory"}
    for override in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        key = override.key_or_group
        if key == "run":
            continue
        if key.split(".")[0] not in groups and key not in MOVABLE:
            raise OptionError(f"{key} was decided when the clip was tuned: run tave.train again to change it")
        if key in MOVABLE and key.partition(".")[2] not in merged.backbone:
            raise OptionError(f"{key}: {merged.backbone.get('name') or 'the backbone'} of {folder} has no such part")
        for part in (key, "trainer.precision") if key == "memory" else (key,):  # a preset sets both
            value: Any = OmegaConf.select(cfg, part)
            OmegaConf.update(merged, part, value, merge=True, force_add=True)
    for name in edit(folder, typed(merged), overrides=list(HydraConfig.get().overrides.task)):
        print(folder / "edits" / name)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="edit")
def main(cfg: DictConfig) -> None:
    guarded(_door, cfg)


if __name__ == "__main__":
    main()
