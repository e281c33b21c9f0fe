"""The second door: another edit of a clip that is already tuned, without tuning or inverting again.

    python -m tave.edit run=outputs/bus_to_suv/... video.target_image=van.png video.target_prompt="a blue van ..."

Options that aren't given are those of the run; :func:`asked` says which may be given anew. Only another ``reference.frame``
or precision needs an inversion of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tave.cache import StoredError
from tave.config import CONF, TrainOptions, composed, parsed, schema, typed
from tave.options import OptionError
from tave.train import guarded
from tave.video import ReadOptions, read_clip

CLIP = tuple(f"video.{key}" for key in ("target_image", "target_prompt", "matte", "mask", "edit", "edits"))
GROUPS = ("mask", "correction", "sampler", "reference", "metrics", "logger", "trainer", "memory")
WHOLE = ("logger", "memory")  # their choices exclude each other, whatever keys they name
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
    """The configuration of the run in ``folder``, under today's schema and without its edits.

    Raises :class:`StoredError` that names the file where there is none, and for one that can't be read or knows other keys.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise StoredError(f"{folder}: no finished run (run.json is missing); give the folder that tave.train printed")
    try:
        stored = json.loads(path.read_text())["config"]
        old = dict.fromkeys(("target_image", "target_prompt", "matte", "mask", "edit"))  # they were the old edit's own
        stored["video"] = {**stored["video"], "edits": {}, **old}
        return OmegaConf.merge(schema(TrainOptions), stored)  # type: ignore[return-value]
    except (ValueError, KeyError, TypeError, OmegaConfBaseException) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0]} {getattr(error, 'full_key', None) or ''}".strip()
        raise StoredError(f"{path}: damaged, or of another version of tave ({why}); tune again with tave.train") from error


def asked(folder: Path, overrides: Sequence[str]) -> DictConfig:
    """The configuration of another edit of the run in ``folder``: the run's, and what ``overrides`` tell, in Hydra's grammar.

    They may tell the keys in CLIP, what is under GROUPS, and MOVABLE. A group's choice sets what its file in ``conf/`` names,
    to what ``tave.train`` would with the run's backbone; the group's other numbers stay the run's.

    Raises :class:`OptionError` for what was decided by the tuning, is unknown or can't be read, :class:`StoredError` as
    :func:`recorded` does; each in one line.
    """
    merged, rest = recorded(folder), []
    for word, override in zip(overrides, parsed(overrides), strict=True):
        key = override.key_or_group
        part = key.split(".")
        if override.is_delete():
            raise OptionError(f"{word}: nothing of a run can be left out, give a value")
        if key in MOVABLE:
            if part[1] not in merged.backbone:
                raise OptionError(f"{key}: {merged.backbone.get('name') or 'the backbone'} of {folder} has no such part")
            merged.backbone[part[1]] = override.value()
        elif part[0] in GROUPS or ".".join(part[:2]) in CLIP:
            rest.append((word, override))
        else:
            raise OptionError(f"{key} was decided when the clip was tuned: run tave.train again to change it")
    cfg = composed("edit", [*_family(merged.backbone), *(word for word, _ in rest)])
    for _, override in rest:
        key, value = override.key_or_group, override.value()
        choices = [] if key not in GROUPS or isinstance(value, dict) else [value] if isinstance(value, str) else value
        if key in WHOLE and choices:
            OmegaConf.update(merged, key, cfg[key], merge=False, force_add=True)
            named = ["trainer.precision"] if key == "memory" else []  # a preset sets both
        elif choices:
            named = [leaf for choice in choices for leaf in _leaves(composed(f"{key}/{choice}", []))]
        else:
            named = _leaves({key: value})
        for leaf in named:
            OmegaConf.update(merged, leaf, OmegaConf.select(cfg, leaf), force_add=True)
    return merged


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values below ``tree`` that are no mappings themselves."""
    for key in tree:
        value = tree[key]
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _family(backbone: DictConfig) -> list[str]:
    """The override that chooses a run's backbone: the file of conf/backbone that agrees in most of what names it; else none."""
    agreeing = {"~backbone": 0}
    for path in sorted((CONF / "backbone").glob("*.yaml")):
        file: Any = OmegaConf.to_container(OmegaConf.load(path).backbone, resolve=True)
        told = {key: file[key] for key in ("_target_", "name", "path") if file.get(key) not in (None, "???")}
        if all(backbone.get(key) == value for key, value in told.items()):
            agreeing[f"backbone={path.stem}"] = len(told)
    return [max(agreeing, key=lambda word: agreeing[word])]


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
    told = [word for word in HydraConfig.get().overrides.task if word.lstrip("+").partition("=")[0] != "run"]
    for name in edit(folder, typed(asked(folder, told)), overrides=told):
        print(folder / "edits" / name)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="edit")
def main(cfg: DictConfig) -> None:
    guarded(_door, cfg)


if __name__ == "__main__":
    main()
