"""Run folders and sweeps as pictures, for notebooks and studies: everything is read from files.

Each function returns a matplotlib ``Figure``, which is in tave[notebooks].
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from tave.config import WHOLE
from tave.files import whole_file
from tave.video import read_clip, read_image, spread

from . import EvalError
from .cases import read_arrays
from .tables import ALL, BETTER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .study import Sweep

ACROSS = 8  # pictures side by side, at most


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvalError("the figure needs matplotlib, which is in tave[notebooks]: run make setup") from error
    return Figure(figsize=(width, height), layout="constrained")


def _shown(frames: Any) -> np.ndarray:
    """Frames `... 3 H W` in [-1, 1] -> `... H W 3` in [0, 1]."""
    return np.moveaxis(np.clip((np.asarray(frames) + 1) / 2, 0, 1), -3, -1)


def _frames(clip: Path) -> np.ndarray:
    """A clip as `f H W 3` in [0, 1]."""
    return _shown(read_clip(clip, WHOLE).frames)


def grid(
    lines: Sequence[tuple[str, Sequence[np.ndarray]]], titles: Sequence[str] = (), side: float = 1.5, **shown: Any
) -> Figure:
    """Lines of pictures `H W` or `H W 3`, each with its label; ``side`` in inches; ``shown`` as for ``imshow``."""
    across = max(len(pictures) for _, pictures in lines)
    figure = _figure(side * across + 0.4, (side + 0.1) * len(lines))
    panels = figure.subplots(len(lines), across, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for line, (label, pictures) in zip(panels, lines, strict=True):
        for panel, picture in zip(line, pictures, strict=False):
            panel.imshow(picture, **shown)
        for panel in line[len(pictures) :]:
            panel.set_axis_off()
        line[0].set_ylabel(label, fontsize=7)
    for panel, title in zip(panels[0], titles, strict=False):
        panel.set_title(title, fontsize=8)
    return figure


def clips(paths: dict[str, Path]) -> Figure:
    """Clips by their labels: up to eight frames."""
    found = {label: _frames(path) for label, path in paths.items()}
    return grid([(label, [frames[i] for i in spread(len(frames), ACROSS)]) for label, frames in found.items()])


def pictures(paths: dict[str, Path]) -> Figure:
    """Picture files by their titles."""
    return grid([("", [_shown(read_image(path).rgb) for path in paths.values()])], list(paths))


def step_maps(edit: Path) -> Figure:
    """The mask's map of each step as heat, noisiest first, in the first, middle and last frame; one scale for all."""
    with np.load(edit / "soft_mask.npz") as stored:
        maps = stored["per_step"].astype(np.float32) if "per_step" in stored else np.zeros((0, 0))
    if not len(maps):
        raise EvalError(f"{edit}: no maps of single steps are stored, as for a mask that was given")
    steps, frames = spread(len(maps), ACROSS), sorted({0, maps.shape[1] // 2, maps.shape[1] - 1})
    lines = [(f"frame {frame}", [maps[step, frame] for step in steps]) for frame in frames]
    return grid(lines, [f"step {step + 1}" for step in steps], cmap="magma", vmin=0, vmax=max(float(maps.max()), 1e-12))


def masks(edit: Path) -> Figure:
    """The averaged map and the mask made of it, up to eight frames."""
    with np.load(edit / "soft_mask.npz") as stored:
        lines = [(name, [stored[name][i] for i in spread(len(stored[name]), ACROSS)]) for name in ("soft", "mask")]
    return grid(lines, cmap="magma", vmin=0, vmax=1)


def latents(run: Path) -> Figure:
    """The inverted trajectory of the middle frame, from the clip's latent to noise: three channels as colours."""
    levels = load_file(run / "trajectory.safetensors")["latents"].astype(np.float32)[:, 0]  # T+1 f c h w
    chosen, middle = spread(len(levels), ACROSS), levels.shape[1] // 2
    kept = [levels[level, middle, :3] for level in chosen]
    scale = max(float(np.abs(kept).max()), 1e-12)
    return grid([("", [_shown(part / scale) for part in kept])], [f"level {level}" for level in chosen])


def field(edit: Path) -> np.ndarray:
    """The correction's field of its last step: `f h w 2`, right and down in cells to the next frame; NaN: none."""
    path = edit / "field.npz"
    if not path.is_file():
        raise EvalError(f"{path} is missing: the edit was made without the inter-frame correction")
    stored = read_arrays(path, ("following", "mask"))
    cells, mask = stored["following"], stored["mask"] > 0
    if cells.ndim != 3 or mask.shape != cells.shape or cells.dtype.kind != "i":
        raise EvalError(f"{path} holds no field: make the edit again")
    here = np.stack(np.meshgrid(np.arange(cells.shape[2]), np.arange(cells.shape[1])), axis=-1)
    there = np.stack([cells % cells.shape[2], cells // cells.shape[2]], axis=-1)
    return np.where(((cells >= 0) & mask)[..., None], (there - here).astype(float), np.nan)


def _ground(edit: Path, moves: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The source's frames, pale, and a cell's height and width in pixels."""
    frames = _frames(edit.parents[1] / "source.mp4")
    return 0.4 * frames + 0.6, frames.shape[1] / moves.shape[1], frames.shape[2] / moves.shape[2]


def arrows(edit: Path) -> Figure:
    """The field as arrows over the source: where in the next frame each masked cell finds its match."""
    moves = field(edit)
    frames, tall, wide = _ground(edit, moves)
    chosen = spread(max(1, len(moves) - 1), most=4)
    figure = grid([("", [frames[i] for i in chosen])], [f"frame {i} to {i + 1}" for i in chosen], side=3)
    for panel, i in zip(figure.axes, chosen, strict=True):
        y, x = np.nonzero(~np.isnan(moves[i, ..., 0]))
        right, down = (moves[i, y, x] * (wide, tall)).T
        at = (x + 0.5) * wide, (y + 0.5) * tall
        panel.quiver(*at, right, down, color="crimson", angles="xy", scale_units="xy", scale=1)
    return figure


def tracks(edit: Path) -> Figure:
    """The field followed from the first frame on: a line for each masked cell, over the first and the last frame."""
    moves = field(edit)
    frames, tall, wide = _ground(edit, moves)
    figure = grid([("", [frames[0], frames[-1]])], ["first frame", "last frame"], side=3)
    for y, x in np.argwhere(~np.isnan(moves[0, ..., 0])):
        line = [(x, y)]
        for move in moves[:-1]:
            dx, dy = move[line[-1][1], line[-1][0]]
            if np.isnan(dx):
                break
            line.append((line[-1][0] + int(dx), line[-1][1] + int(dy)))
        across, down = (np.array(line) + 0.5).T
        for panel in figure.axes:
            panel.plot(across * wide, down * tall, linewidth=0.8)
    return figure


def by_value(found: Sequence[dict[str, Any]], metrics: Sequence[str], facts: dict[str, dict[str, Any]]) -> Figure:
    """A panel for each metric of :func:`eval.study.means`: values across, a thin line for each clip, the mean thick."""
    across = min(4, len(metrics))
    down = -(-len(metrics) // across)
    figure = _figure(3.4 * across, 2.9 * down)
    for number, name in enumerate(metrics, 1):
        panel, own = figure.add_subplot(down, across, number), [each for each in found if each["metric"] == name]
        places = list(range(len(own)))
        for case in sorted({case for each in own for case in each["cases"]}):
            values = [each["cases"].get(case, np.nan) for each in own]
            panel.plot(places, values, ".-", linewidth=0.7, alpha=0.7, label=case)
        means, spreads = [each["mean"] for each in own], [each["seeds_sd"] or 0 for each in own]
        panel.errorbar(places, means, spreads, marker="s", color="black", label="mean")
        panel.set_xticks(places, [each["value"] for each in own], rotation=35, ha="right", fontsize=6)
        _label(panel, name, "y", facts[name])
    figure.axes[0].legend(fontsize=5, framealpha=0.4)
    return figure


def _label(panel: Any, title: str, axis: str, facts: dict[str, Any]) -> None:
    panel.set_title(f"{title}\n{BETTER[facts['higher_is_better']]}", fontsize=8)
    getattr(panel, f"set_{axis}label")(facts["unit"], fontsize=7)


def intervals(found: Sequence[dict[str, Any]], metrics: Sequence[str], facts: dict[str, dict[str, Any]]) -> Figure:
    """A panel for each metric of :func:`eval.tables.paired`: mean of each method minus ``versus``, 95 % interval."""
    found = [each for each in found if each["group"] == ALL]
    figure = _figure(3.2 * len(metrics) + 1, 1.1 + 0.4 * len({each["method"] for each in found}))
    for panel, name in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        own = [each for each in found if each["metric"] == name]
        means = np.array([-each["difference"] for each in own])
        ends = np.array([[-each["high"], -each["low"]] for each in own]).reshape(-1, 2)
        panel.errorbar(means, range(len(own)), xerr=np.abs(ends.T - means), fmt="s", color="black", capsize=3)
        panel.axvline(0, color="0.7", linewidth=0.8)
        panel.set_yticks(range(len(own)), [each["method"] for each in own], fontsize=7)
        panel.set_ylim(-0.6, max(len(own), 1) - 0.4)
        _label(panel, f"{name} minus {own[0]['versus'] if own else ''}'s", "x", facts[name])
    return figure


def edits(sweep: Sweep, case: str) -> Figure:
    """The source of one clip, then its edit under each value (first seed)."""
    found = sorted((result for result in sweep.results if result.case == case), key=lambda result: result.seed or 0)
    if not found:
        raise EvalError(f"case={case}: there are {', '.join(sorted({result.case for result in sweep.results}))}")
    first = {result.method: result.edited for result in reversed(found)}
    return clips({"source": found[0].source} | {value: first[value] for value in sweep.values if value in first})


def save_small(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG with 64 colours: a third of the bytes, since figures are committed."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110)
    with whole_file(path) as waiting:
        Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(waiting, "PNG", optimize=True)
