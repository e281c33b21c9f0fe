"""The OmegaConf resolver ``${drawn:NAME}``: the folder of a drawn case, which is drawn when the options have passed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

FOLDER = Path("outputs") / "drawn"  # relative to the working folder
_wanted: set[str] = set()  # cases whose folders have been resolved and not drawn yet


def place(name: str) -> str:
    """Return the absolute folder of a case, which :func:`drawing` draws."""
    _wanted.add(name)
    return str((FOLDER / name).resolve())


@contextmanager
def drawing() -> Iterator[None]:
    """Draw the cases whose folders were resolved in the block, unless that raised an error. See :func:`drawn`."""
    _wanted.clear()
    yield
    while _wanted:
        drawn(_wanted.pop())


def drawn(name: str) -> str:
    """Return the absolute folder of a named, study or benchmark case: source.mp4, target.png and truth/.

    It is drawn unless it is there. Raises ValueError if no case has this name.
    """
    from tave.roadside.cases import draw_case, find_case  # numpy; torch as well if the case is not drawn yet

    return str(draw_case(find_case(name), FOLDER).resolve())


OmegaConf.register_new_resolver("drawn", place, replace=True)
