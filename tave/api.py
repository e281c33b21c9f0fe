"""The Python interface of a notebook: tune on a clip, edit it, look at the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any

from tave.cli import compose_options, typed
from tave.config import WHOLE, slug
from tave.interrupts import Interrupted, handled
from tave.keys import literal, quoted
from tave.record import check_record, network_clip, read_metrics

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TunedClip:
    """A clip that is tuned on, in its run folder."""

    folder: Path

    @cached_property
    def frames(self) -> Tensor:
        """The source frames, ``f 3 H W`` in [-1, 1]."""
        return _frames(self.folder / "source.mp4")


@dataclass(frozen=True)
class EditedClip:
    """An edit, in its folder below the run folder."""

    folder: Path

    @cached_property
    def frames(self) -> Tensor:
        """The edited frames at the network's size, ``f 3 H W`` in [-1, 1]; ``edited.mp4`` has the clip's own."""
        return _frames(network_clip(self.folder))

    @cached_property
    def mask(self) -> Tensor:
        """Where the edit is, ``f 1 H W`` in {0, 1}."""
        return (_frames(self.folder / "mask.mp4").mean(1, keepdim=True) > 0).float()

    @cached_property
    def figures(self) -> dict[str, Any]:
        """What was measured, by metric; empty if nothing was."""
        return read_metrics(self.folder.parents[1]).get("edits", {}).get(self.folder.name, {})


def _frames(path: Path) -> Tensor:
    from tave.video import read_clip

    check_record(path.parent, [path.name])
    return read_clip(path, WHOLE).frames


@contextmanager
def _interruptible() -> Iterator[None]:
    """End at the next step on Ctrl-C, as the entry points do, with the exception that a notebook expects."""
    with handled():
        try:
            yield
        except Interrupted as error:
            raise (KeyboardInterrupt if error.signum == SIGINT else SystemExit(error.code)) from None


def tune_clip(
    clip: str | Path,
    prompt: str,
    *,
    folder: str | Path | None = None,
    overrides: Sequence[str] = (),
    show: bool = True,
) -> TunedClip:
    """Tune on ``clip``, described by ``prompt``.

    ``overrides`` are those of the command line: ``["tuning.steps=300", "backbone=folder", "backbone.path=weights"]``.
    Raises ValueError with one line that names the input and the remedy.
    """
    from tave.train import train

    given = ["+video=custom", f"video.path={quoted(clip)}", f"video.source_prompt={quoted(prompt)}"]
    options = compose_options("train", [*given, *overrides])
    place = Path("outputs") / slug(Path(clip).stem) / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    with _interruptible():
        return TunedClip(train(options, Path(folder) if folder is not None else place, show=show))


def edit_clip(
    run: TunedClip | str | Path,
    target_image: str | Path | Sequence[str | Path],
    prompt: str,
    *,
    name: str | None = None,
    overrides: Sequence[str] = (),
    show: bool = True,
) -> EditedClip:
    """Edit the clip of ``run`` towards ``target_image``, described by ``prompt``.

    Several images are pictures of one object. ``overrides`` are those of ``tave.edit``. Raises ValueError like
    :func:`tune_clip`.
    """
    from tave.edit import edit, options_of
    from tave.source import footage_of

    folder = run.folder if isinstance(run, TunedClip) else Path(run)
    cfg = options_of(folder, overrides)
    images = [str(target_image)] if isinstance(target_image, str | Path) else [str(path) for path in target_image]
    cfg.video.target_image, cfg.video.target_prompt = [literal(path) for path in images], literal(prompt)
    cfg.video.edit = name
    with _interruptible():
        options = typed(cfg)
        *_, made = edit(folder, options, overrides=overrides, footage=footage_of(folder, options.video), show=show)
    return EditedClip(folder / "edits" / made)
