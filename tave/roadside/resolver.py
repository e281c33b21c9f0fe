"""The OmegaConf resolver ``${drawn:NAME}``: the folder of a drawn case, drawn once the options are validated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from omegaconf import OmegaConf

VARIABLE = "TAVE_DRAWN"  # the environment variable with the folder of drawn clips
_wanted: ContextVar[set[str]] = ContextVar("wanted")  # cases whose folders were resolved in a block of drawing()


def folder() -> Path:
    """Return the absolute folder of drawn clips: that of ``TAVE_DRAWN``, or outputs/drawn in the working folder."""
    return Path(os.environ.get(VARIABLE) or Path("outputs") / "drawn").absolute()


def place(name: str) -> str:
    """Return the absolute folder of a case, which :func:`drawing` draws."""
    _wanted.get(set()).add(name)
    return str(folder() / name)


def keep_folder(path: str | Path | None = None) -> None:
    """Set the folder of drawn clips for this process and its children: ``path``, by default :func:`folder`.

    ``TAVE_DRAWN`` has priority.
    """
    os.environ.setdefault(VARIABLE, str(Path(path).absolute() if path else folder()))


@contextmanager
def drawing_into(path: str | Path) -> Iterator[None]:
    """Keep the folder of drawn clips for a block, as :func:`keep_folder` does for good."""
    before = os.environ.get(VARIABLE)
    keep_folder(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]


@contextmanager
def drawing() -> Iterator[None]:
    """Draw the cases whose folders were resolved in the block, unless that raised an error. See :func:`drawn`."""
    token = _wanted.set(set())
    try:
        yield
        for name in sorted(_wanted.get()):
            drawn(name)
    finally:
        _wanted.reset(token)


def drawn(name: str) -> str:
    """Return the absolute folder of a named, study or benchmark case: source.mp4, target.png and truth/.

    It is drawn unless it is there. Raises ValueError if no case has this name, OSError if the folder can't be written.
    """
    from tave.roadside.cases import find_case  # numpy; torch as well if the case is not drawn yet
    from tave.roadside.files import draw_case

    return str(draw_case(find_case(name), folder()))


OmegaConf.register_new_resolver("drawn", place, replace=True)
