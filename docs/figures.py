"""Draw the figures of docs/method.md from the files of one run folder; of a long clip those of docs/long_clips.md.

    python -m tave.train video=bus_to_suv        # prints the run folder
    python docs/figures.py RUN_FOLDER            # docs/figures/*.png

Needs matplotlib, which is in tave[notebooks]. Pictures get a palette, so that they stay small in git.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.numpy import load_file

from eval.cases import read_cases
from eval.motion import warp_error
from tave.attention import SparseCausalAttention
from tave.config import WHOLE
from tave.record import network_clip
from tave.video import read_clip

DOCS = Path(__file__).parent
COLUMNS = 8  # pictures side by side, at most
COLOURS = 128  # of a figure's palette


def read_frames(path: Path) -> np.ndarray:
    """A clip as `f H W 3` in [0, 1]."""
    return (read_clip(path, WHOLE).frames.movedim(1, -1).numpy() + 1) / 2


def read_picture(path: str | Path) -> np.ndarray:
    """A picture as `H W 3` in [0, 1]."""
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255


def spread(count: int) -> list[int]:
    """Up to COLUMNS of ``count`` indices, the first and the last among them."""
    return np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int).tolist()


def grid(rows: dict[str, list[np.ndarray]], titles: list[str] | None = None, side: float = 1.1, **shown) -> Figure:
    """Rows of pictures, ``side`` inches each, under their labels; ``shown`` goes to ``imshow``."""
    across = max(map(len, rows.values()))
    figure = Figure(figsize=(side * across + 0.5, side * len(rows) + (0.3 if titles else 0.1)), layout="constrained")
    panels = figure.subplots(len(rows), across, squeeze=False)
    for line, (label, pictures) in zip(panels, rows.items(), strict=True):
        for panel, picture in zip(line, pictures, strict=True):
            panel.imshow(picture, **shown)
            panel.set_xticks([], [])
            panel.set_yticks([], [])
        line[0].set_ylabel(label, fontsize=7)
    for panel, title in zip(panels[0], titles or [], strict=False):
        panel.set_title(title, fontsize=7)
    return figure


def attended_frames(run: Path) -> Figure:
    """Which frames (columns) each frame (rows) takes keys and values from, before and after inflation."""
    record = json.loads((run / "run.json").read_text())
    frame, kv_frames = np.arange(record["size"][0]), record["config"]["inflation"]["kv_frames"]
    alone = torch.eye(len(frame))  # the states of a clip of one cell: each frame has one of its own
    sparse = SparseCausalAttention(len(frame), kv_frames).gather(alone[:, None]).amax(1)
    panels = {"image network": alone, f"ST-Attn: {kv_frames}": sparse, "T-Attn": torch.ones_like(sparse)}
    figure = Figure(figsize=(6.0, 2.3), layout="constrained")
    for axes, (title, matrix) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.pcolormesh(matrix, cmap="Blues", vmin=0, vmax=1.4, edgecolors="white", linewidth=1)
        axes.set_xticks(frame + 0.5, frame + 1, fontsize=6)
        axes.set_yticks(frame + 0.5, frame + 1, fontsize=6)
        axes.set(aspect="equal")
        axes.invert_yaxis()
        axes.set_title(title, fontsize=7)
        axes.set_xlabel("key, value: frame", fontsize=7)
    figure.axes[0].set_ylabel("query: frame", fontsize=7)
    return figure


def loss_curve(run: Path) -> Figure:
    """The tuning loss and its running mean, of the CSV logger."""
    lines = [line for file in sorted(run.glob("logs/**/metrics.csv")) for line in csv.DictReader(file.open())]
    points = np.array([(float(line["step"]), float(line["loss"])) for line in lines if line["loss"]])
    if not len(points):
        sys.exit(f"error: {run}/logs has no loss, since its tuning was cached: run again with cache=NEW_FOLDER")
    steps, values = points.T
    figure = Figure(figsize=(4.5, 2.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, values, color="0.75", linewidth=0.8)
    width = max(1, len(values) // 6)
    axes.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"), color="C3")
    axes.set_xlabel("step", fontsize=7)
    axes.set_ylabel("loss", fontsize=7)
    axes.tick_params(labelsize=6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def level_pictures(run: Path) -> Figure:
    """The middle frame's latents from clean to noise: their first three channels as colours."""
    latents = load_file(run / "trajectory.safetensors")["latents"]
    shown = latents[:, 0, latents.shape[2] // 2, :3].transpose(0, 2, 3, 1)
    low, high = np.quantile(shown, [0.01, 0.99])
    pictures = [np.clip((shown[level] - low) / (high - low), 0, 1) for level in spread(len(shown))]
    return grid({"latents": pictures}, [f"level {i}" for i in spread(len(shown))], interpolation="nearest")


def arrows(edit: Path, frames: np.ndarray) -> Figure:
    """The inter-frame field from a frame to the next, over the edit."""
    stored = np.load(edit / "field.npz")
    following, inside = stored["following"], stored["mask"] > 0
    rows, columns = following.shape[1:]
    tall, wide = frames.shape[1] / rows, frames.shape[2] / columns
    chosen = spread(len(frames) - 1)[::2]
    figure = grid({"": [0.5 + 0.5 * frames[i] for i in chosen]}, [f"frame {i} to {i + 1}" for i in chosen], side=2.2)
    for panel, i in zip(figure.axes, chosen, strict=True):
        y, x = np.nonzero(inside[i] & (following[i] >= 0))
        y_to, x_to = np.divmod(following[i][y, x], columns)
        places = (x + 0.5) * wide, (y + 0.5) * tall, (x_to - x) * wide, (y_to - y) * tall
        panel.quiver(*places, angles="xy", scale_units="xy", scale=1, width=0.006, color="C3")
    return figure


def seams(run: Path) -> Figure:
    """A clip in several windows: the object's warp error from each frame to the next, and its mean colour's distance
    from that of the first window, of the edit and of the ideal clip. Lines: windows begin or end."""
    case = next(read_cases(run))
    truth, windows = case.truth, case.request.windows
    if truth is None:
        sys.exit(f"error: {run} has no truth: give a run of a drawn clip")
    motion, frames = truth.target_motion, range(len(case.edited))

    def errors(clip: torch.Tensor, region: torch.Tensor) -> list[float]:
        found = (warp_error(clip[i : i + 2], motion[i : i + 1], region[i : i + 2]) for i in frames[:-1])
        return [np.nan if value is None else value for value in found]

    def distances(clip: torch.Tensor, region: torch.Tensor) -> list[float]:
        colours = torch.stack([clip[i][:, region[i]].mean(dim=1) for i in frames])
        return (127.5 * (colours - colours[slice(*windows[0])].mean(dim=0)).square().mean(dim=1).sqrt()).tolist()

    figure = Figure(figsize=(7.0, 3.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    clips = {"edit": (case.edited, "C3"), "ideal clip": (truth.ideal, "0.5")}
    for name, (clip, colour) in clips.items():
        above.plot(np.array(frames[:-1]) + 0.5, errors(clip, truth.target_mask), color=colour, linewidth=1, label=name)
        below.plot(frames, distances(clip, truth.target_mask), color=colour, linewidth=1, label=name)
    for axes, label in ((above, "warp error, levels"), (below, "colour, levels")):
        for end in sorted({frame for span in windows for frame in span} - {0, len(frames)}):
            axes.axvline(end - 0.5, color="0.8", linewidth=0.8, zorder=0)
        axes.set_ylabel(label, fontsize=7)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    above.legend(fontsize=6, frameon=False)
    below.set_xlabel("frame", fontsize=7)
    return figure


def save(name: str, figure: Figure) -> None:
    """Write ``figure`` as docs/figures/NAME.png with a palette."""
    path, drawn = DOCS / "figures" / f"{name}.png", io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


def main(run: Path) -> None:
    edit = next(path.parent for path in sorted(run.glob("edits/*/edit.json")))
    source, mask, edited = map(read_frames, (run / "source.mp4", edit / "mask.mp4", network_clip(edit)))
    target = read_picture(json.loads((edit / "edit.json").read_text())["target_image"])
    stored, chosen, middle = np.load(edit / "soft_mask.npz"), spread(len(source)), len(source) // 2
    masked, per_step = np.where(mask > 0.5, source, source / 4), stored["per_step"].astype(np.float32)
    clips = {"source": source, "mask": masked, "edit": edited}
    strips = grid({label: [clip[i] for i in chosen] for label, clip in clips.items()})
    (DOCS / "figures").mkdir(exist_ok=True)
    if len(json.loads((run / "run.json").read_text())["windows"]) > 1:
        save("long_edit", strips)
        save("seams", seams(run))
        return
    save("edit", strips)
    titles, encoded = ["target image", "target as encoded", "source as encoded"], read_picture(edit / "reference.png")
    save("condition", grid({"": [target, encoded, source[middle]]}, titles, side=1.8))
    save("inflation", attended_frames(run))
    save("loss", loss_curve(run))
    save("trajectory", level_pictures(run))
    maps = spread(len(per_step))
    save("steps", grid({"D": [per_step[i, middle] for i in maps]}, [f"step {i + 1}" for i in maps], cmap="magma"))
    planes = {"source": source} | {name: stored[name] for name in ("soft", "binary", "mask")}
    rows = {name: [plane[i] for i in chosen] for name, plane in planes.items()}
    save("masks", grid(rows, cmap="gray", vmin=0, vmax=1, interpolation="nearest"))
    save("field", arrows(edit, edited))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
