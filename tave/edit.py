"""Entry point: another edit of a clip that is already tuned, without tuning or inverting again.

python -m tave.edit run=outputs/bus_to_suv/... video.target_image=van.png video.target_prompt="a blue van ..."

Options that are not given are those of the run. Only another ``reference.frame`` or precision needs a new inversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tave.cli import Context, changed, entry_point, typed
from tave.config import WHOLE, OptionError, TrainOptions
from tave.files import FileError, read_json
from tave.train import measure_and_log

if TYPE_CHECKING:
    from tave.run import Run


def edit(
    folder: Path,
    options: TrainOptions,
    *,
    overrides: Sequence[str] = (),
    about: dict[str, Any] | None = None,
    overwrite: bool = False,
    show: bool = True,
) -> list[str]:
    """Make the requested edits in the run ``folder``; returns their names. Earlier edits are kept.

    An edit that exists with the same key is not made again; another edit of the same name gets a numbered name, or is
    replaced if ``overwrite``. ``overrides``: those that differ from the run, for ``edit.json``; ``about``: further
    content.
    """
    from tave.progress import Progress
    from tave.run import Run
    from tave.video import Origin, read_clip

    requests = options.video.requests()
    if not requests:
        raise OptionError("no edit is requested: give video.target_image=... and video.target_prompt=...")
    clip = read_clip(folder / "source.mp4", WHOLE)
    origin = read_json(folder / "run.json").get("origin")
    clip = replace(clip, origin=origin and Origin.recorded(origin))
    with closing(Run(options, folder, clip, Progress(show=show), tuned=folder / "tuned.safetensors")) as run:
        named = requests if overwrite else {_free(run, name, entry): entry for name, entry in requests.items()}
        run.predict(named, {"overrides": list(overrides), **(about or {})})
        if options.metrics.enabled:
            measure_and_log(run, named)
    return list(named)


def _free(run: Run, name: str, entry: Any) -> str:
    """``name``, or the first of ``name-2``, ``name-3``, ... that is free or holds this very edit."""
    from tave.cache import is_made

    (target,) = run.targets({name: entry})
    found, count = name, 1
    while (here := run.folder / "edits" / found).exists() and not is_made(here / "edit.json", run.edit_key(target)):
        count += 1
        found = f"{name}-{count}"
    return found


def recorded(folder: Path) -> dict[str, Any]:
    """The configuration of the run in ``folder`` without its edits. Raises FileError, which names the file and
    remedy.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise FileError(f"{folder}: no finished run (run.json is missing); give the folder that tave.train printed")
    config = read_json(path, "tune again with tave.train").get("config")
    if not isinstance(config, dict) or not isinstance(config.get("video"), dict):
        raise FileError(f"{path} contains no configuration: tune again with tave.train")
    none = dict.fromkeys(
        ("target_image", "target_prompt", "matte", "mask", "object", "edit")
    )  # those of the earlier edit
    return {**config, "video": {**config["video"], "edits": {}, **none, "mask_inverted": False}}


def _words(context: Context) -> list[str]:
    return [word for word in context.overrides if word.lstrip("+").partition("=")[0] != "run"]


def _work(cfg: DictConfig, context: Context) -> None:
    if OmegaConf.is_missing(cfg, "run"):
        raise OptionError("run is not set: give run=FOLDER, the folder that tave.train printed last")
    folder, words = Path(cfg.run), _words(context)
    for name in edit(folder, typed(changed(recorded(folder), words)), overrides=words):
        print(folder / "edits" / name)


main = entry_point("edit a tuned clip", "edit", _work, read=lambda cfg: cfg)

if __name__ == "__main__":
    main()
