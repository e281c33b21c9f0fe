"""The three lines for a notebook: the doors' own functions, called with plain arguments."""

from __future__ import annotations

import re
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
    from omegaconf import OmegaConf

    from tave.config import composed, slug, typed
    from tave.train import train

    given = ["+video=custom", f"video.path={quoted(clip)}", f"video.source_prompt={quoted(prompt)}"]
    cfg = composed("train", [*given, *overrides])
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

    Several images are pictures of one object, joined as ``reference.several`` says. ``overrides`` are those of ``tave.edit``.
    Raises ValueError as :func:`tune_clip` does.
    """
    from tave.config import typed
    from tave.edit import asked, edit

    cfg = asked(Path(run), overrides)
    images = [str(target_image)] if isinstance(target_image, str | Path) else [str(path) for path in target_image]
    cfg.video.target_image, cfg.video.target_prompt, cfg.video.edit = images, prompt, name
    *_, made = edit(Path(run), typed(cfg), overrides=overrides, show=show)
    return Path(run) / "edits" / made


def quoted(value: str | Path) -> str:
    """A value as Hydra's override grammar reads it back unchanged."""
    text = re.sub(r'(\\*)("|$)', lambda at: 2 * at[1] + at[2].replace('"', '\\"'), str(value))  # others stand for themselves
    return f'"{text}"'
