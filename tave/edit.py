"""Entry point: another edit of a clip that is already tuned, without tuning or inverting again.

python -m tave.edit run=outputs/bus_to_suv/... video.target_image=van.png video.target_prompt="a blue van ..."

Options that are not given are those of the run, as far as the result depends on them; cache, loggers and trainer are
this command's. Only another ``reference.frame`` or precision needs a new inversion.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tave.cli import Context, entry_point, one_line, schema, typed
from tave.config import CONF, EDIT_GROUPS, EDIT_KEYS, MemoryOptions, OptionError, TrainOptions, nearest
from tave.files import naming
from tave.keys import ROOTS, choices_of, literals, prepared
from tave.locks import ClaimedError, all_claimed, claimed
from tave.record import REPORT, SUMS, check_links, check_record, recorded, unlisted
from tave.summary import noted, say
from tave.train import measure_and_log, report_on

if TYPE_CHECKING:
    from tave.run import Run
    from tave.video import Footage


log = logging.getLogger(__name__)


def edit(
    folder: Path,
    options: TrainOptions,
    *,
    overrides: Sequence[str] = (),
    about: dict[str, Any] | None = None,
    overwrite: bool = False,
    footage: Footage | None = None,
    show: bool = True,
) -> list[str]:
    """Make the requested edits in the run ``folder``; returns their names. Earlier edits are kept.

    ``footage``: the clip's file, which the edits are laid over; None: they have the network's size.

    An edit that exists with the same key is not made again; another edit of the same name gets a numbered name, or is
    replaced if ``overwrite``. ``overrides``: those that differ from the run, for ``edit.json``; ``about``: further
    content. Raises ValueError, in one line, for files of the run that have changed since it was made.
    """
    from tave.progress import Progress
    from tave.run import Run
    from tave.scratch import Scratch
    from tave.source import clip_of
    from tave.space import check_present, check_space

    requests = options.video.requests()
    if not requests:
        raise OptionError("no edit given: give video.target_image=... and video.target_prompt=...")
    check_links(folder)
    check_record(folder, ("source.mp4", "tuned.safetensors", "trajectory.safetensors"))
    if unknown := [name for name in unlisted(folder) if name != REPORT]:
        log.warning(
            "%s/%s lacks %s: nothing tells whether these are as they were made", folder, SUMS, ", ".join(unknown)
        )
    clip = clip_of(folder, Scratch(Path(options.cache)))
    with (
        naming(folder),
        closing(Run(options, folder, clip, Progress(show=show), folder / "tuned.safetensors", footage)) as run,
        ExitStack() as claims,
    ):
        check_space(run.needed())
        if overwrite:
            claims.enter_context(all_claimed([folder / "edits" / name for name in requests], math.inf, log.warning))
            named = requests
        else:
            named = {_free(run, name, entry, claims): entry for name, entry in requests.items()}
        run.predict(named, {"overrides": list(overrides), **(about or {})})
        check_present(folder)
        if options.metrics.enabled:
            measure_and_log(run, named)
        report_on(run)
    return list(named)


def _free(run: Run, name: str, entry: Any, claims: ExitStack) -> str:
    """``name``, or the first of ``name-2``, ``name-3``, ... that is free or holds the same edit.

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


# ---- options ---------------------------------------------------------------------------------------------------------


def options_of(folder: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The options of another edit in the run ``folder`` under the ``overrides`` of its command, whose logger is csv."""
    return changed({**literals(recorded(folder)), "logger": {"csv": {}}}, overrides)


def changed(config: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """The config of a tuned clip under the ``overrides`` of another edit.

    EDIT_GROUPS and EDIT_KEYS may change. A choice of ``memory`` or ``logger`` replaces the group, an experiment sets
    what its file names. Raises :class:`OptionError` for other keys and for a config of another version.
    """
    root = ROOTS["edit"]
    try:
        cfg = OmegaConf.merge(schema(TrainOptions), config)
    except OmegaConfBaseException as error:
        raise OptionError(f"recorded by another version of tave ({one_line(error, root)}): tune again") from error
    try:
        for override in OverridesParser.create().parse_overrides(prepared(overrides, "edit")):
            key, value = override.key_or_group, override.value()
            if key not in root.groups or isinstance(value, Mapping):
                _set(cfg, key, value)
                continue
            if key != "experiment":
                OmegaConf.update(cfg, key, {} if key == "logger" else schema(MemoryOptions), merge=False)
            for name in value if isinstance(value, list) else [value]:
                if name not in choices_of(key):
                    raise OptionError(f"{key}={name} is not known: {nearest(str(name), choices_of(key))}")
                file: Any = OmegaConf.to_container(OmegaConf.load(CONF / key / f"{name}.yaml"))
                for leaf, each in _leaves(file):
                    _set(cfg, leaf, each)
    except (HydraException, OmegaConfBaseException) as error:
        raise OptionError(one_line(error, root)) from error
    return cfg  # type: ignore[return-value]


def _set(cfg: Any, key: str, value: Any) -> None:
    if key.split(".")[0] not in EDIT_GROUPS and not f"{key}.".startswith(tuple(f"{known}." for known in EDIT_KEYS)):
        raise OptionError(f"{key} was decided when the clip was tuned: run tave.train again to change it")
    OmegaConf.update(cfg, key, value, force_add=True)


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _words(context: Context) -> list[str]:
    return [word for word in context.overrides if word.lstrip("+").partition("=")[0] not in ("run", "inputs")]


def _work(cfg: DictConfig, context: Context) -> None:
    if OmegaConf.is_missing(cfg, "run"):
        raise OptionError("run is not set: give run=FOLDER, the folder that tave.train printed last")
    folder, words = Path(cfg.run), _words(context)
    options = typed(options_of(folder, words))
    from tave.source import footage_of

    with noted(cfg.quiet) as notes:
        footage = footage_of(folder, options.video, cfg.inputs)
        if footage is None:
            log.warning("the clip that was tuned on isn't here: the edit has the network's size; give inputs=FOLDER")
        made = edit(folder, options, overrides=words, show=not cfg.quiet, footage=footage)
    folders = [folder / "edits" / name for name in made]
    say(folder, made, notes, folders, quiet=cfg.quiet, as_json=cfg.json)


main = entry_point("edit a tuned clip", "edit", _work, read=lambda cfg: cfg)

if __name__ == "__main__":
    main()
