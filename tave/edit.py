"""Entry point: another edit of a clip that is already tuned, without tuning or inverting again.

python -m tave.edit run=outputs/bus_to_suv/... video.target_image=van.png video.target_prompt="a blue van ..."

Options that are not given are those of the run. Only another ``reference.frame`` or precision needs a new inversion.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tave.cli import Context, changed, entry_point, typed
from tave.config import WHOLE, OptionError, TrainOptions
from tave.files import FileError, read_json
from tave.locks import ClaimedError, all_claimed, claimed
from tave.train import measure_and_log

if TYPE_CHECKING:
    from tave.run import Run


log = logging.getLogger(__name__)


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
    from tave.space import check_space
    from tave.video import read_clip

    requests = options.video.requests()
    if not requests:
        raise OptionError("no edit is requested: give video.target_image=... and video.target_prompt=...")
    clip = read_clip(folder / "source.mp4", WHOLE)
    with (
        closing(Run(options, folder, clip, Progress(show=show), tuned=folder / "tuned.safetensors")) as run,
        ExitStack() as claims,
    ):
        check_space(run)
        if overwrite:
            claims.enter_context(all_claimed([folder / "edits" / name for name in requests], math.inf, log.warning))
            named = requests
        else:
            named = {_free(run, name, entry, claims): entry for name, entry in requests.items()}
        run.predict(named, {"overrides": list(overrides), **(about or {})})
        if options.metrics.enabled:
            measure_and_log(run, named)
    return list(named)


def _free(run: Run, name: str, entry: Any, claims: ExitStack) -> str:
    """``name``, or the first of ``name-2``, ``name-3``, ... that is free or holds this very edit.

    ``claims`` gets the claim to it: a name at which another process is at work is not free.
    """
    from tave.cache import is_made

    (target,) = run.targets({name: entry})
    for found in chain([name], (f"{name}-{number}" for number in count(2))):
        here = run.folder / "edits" / found
        with suppress(ClaimedError), ExitStack() as claim:
            claim.enter_context(claimed(here))
            if not here.exists() or is_made(here / "edit.json", run.edit_key(target)):
                claims.push(claim.pop_all())
                return found
    raise AssertionError  # there is always another number


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
    none = dict.fromkeys(("target_image", "target_prompt", "matte", "mask", "edit"))  # those of the earlier edit
    return {**config, "video": {**config["video"], "edits": {}, **none}}


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
