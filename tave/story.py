"""The three lines for a notebook: the doors' own functions, called with plain arguments."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path


def tune_clip(
    clip: str | Path,
    prompt: str,
    *,
    folder: str | Path | None = None,
    overrides: Sequence[str] = (),
    show: bool = True,
) -> Path:
    """Tune on ``clip``, described by ``prompt``; returns the run folder for :func:`edit_clip`.

    ``overrides`` are those of the command line: ``["tuning.steps=300", "backbone=folder", "backbone.path=weights"]``.
    Raises ValueError with one line that names the input and the remedy.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from tave.config import CONF, slug, typed
    from tave.train import train

    given = ["+video=custom", f"video.path={quoted(clip)}", f"video.source_prompt={quoted(prompt)}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*given, *overrides])
    named = f"{slug(Path(clip).stem)}/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    place = Path(folder) if folder is not None else Path("outputs") / named
    return train(typed(cfg), place, config=OmegaConf.to_container(cfg, resolve=True), show=show)  # type: ignore[arg-type]


def edit_clip(
    run: str | Path,
    target_image: str | Path | Sequence[str | Path],
    prompt: str,
    *,
    name: str | None = None,
    overrides: Sequence[str] = (),
    show: bool = True,
) -> Path:
    """Edit the clip of ``run`` towards ``target_image``, described by ``prompt``; returns the edit's folder.

    Several images are pictures of one object, joined as ``reference.several`` says.
    """
    from omegaconf import OmegaConf

    from tave.config import typed
    from tave.edit import edit, recorded

    cfg = recorded(Path(run))
    images = [str(target_image)] if isinstance(target_image, str | Path) else [str(path) for path in target_image]
    cfg.video.target_image, cfg.video.target_prompt, cfg.video.edit = images, prompt, name
    (made,) = edit(Path(run), typed(OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(overrides)))), show=show)  # type: ignore[arg-type]
    return Path(run) / "edits" / made


def quoted(value: str | Path) -> str:
    """A value as Hydra's override grammar reads it back unchanged."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
