"""The OmegaConf resolver ``${drawn:NAME}``: the folder of a drawn case, which is drawn at the first use."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

FOLDER = Path("outputs") / "drawn"  # relative to the working folder


def drawn(name: str) -> str:
    """Return the absolute folder of a named, study or benchmark case: source.mp4, target.png and truth/.

    Raises:
        ValueError: no case has this name.
    """
    from tave.roadside.cases import draw_case, find_case  # numpy; torch as well if the case is not drawn yet

    return str(draw_case(find_case(name), FOLDER).resolve())


OmegaConf.register_new_resolver("drawn", drawn, replace=True)
