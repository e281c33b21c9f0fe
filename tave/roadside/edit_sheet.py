"""Pictures and a table of the edits of all named clips, for the documentation.

python -m tave.roadside.edit_sheet RUNS DOCS    RUNS: a folder of run folders, one per clip
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tave.config import WHOLE
from tave.files import FileError, file_digest
from tave.record import check_record, network_clip, read_edit, read_metrics
from tave.video import read_clip
from tave.video.frames import to_pixels

SHOWN = (0, 2, 5, 7)  # frames of the contact sheet
HERO = "bus_to_suv"  # the clip that is shown moving
GAP, LABEL, ZOOM = 4, 14, 2  # px, px, size of the moving picture relative to the clip's
FIGURES = {  # metric: label, decimals
    "ideal_psnr": ("PSNR to the ideal clip, dB", 1),
    "ideal_psnr_aligned": ("the same at the best shift, dB", 1),
    "background_psnr_outside_mask": ("background outside the mask, dB", 1),
    "background_psnr": ("whole background, dB", 1),
    "mask_recall": ("mask: recall of the old object", 2),
    "mask_iou_union": ("mask: IoU with old and new object, before dilation", 2),
    "mask_iou_final": ("mask: the same, as applied", 2),
    "mask_area_ratio": ("mask: area relative to old and new object", 2),
    "residue_old": ("residue of the old object", 3),
    "object_presence": ("frames that show an object", 2),
    "shadow_iou": ("IoU of the shadow with the ideal clip's", 2),
    "yaw_error": ("yaw by silhouette against the truth, degrees", 0),
    "instances_shown": ("instances shown", 2),
    "judge_vehicle_accuracy": ("judge: vehicle", 2),
    "judge_color_accuracy": ("judge: colour", 2),
    "judge_pattern_accuracy": ("judge: pattern", 2),
    "warp_error_object": ("warp error of the object, 8-bit levels", 1),
    "warp_error_object_source": ("warp error of the object in the source", 1),
}
HEAD = """# Edits of the named clips

Default options (`make sheet`). [drawn_world.md](drawn_world.md#the-named-clips) says what is seen in them.

![For each clip target image, and four frames of source, mask and edit](contact_sheet.png)
"""
ARROWS = {True: " ↑", False: " ↓", None: ""}


def clips_of(run: Path) -> dict[str, list[Image.Image]]:
    """Return the frames of source, mask and edit (the run's first) by label, and the target image as a clip of one."""
    edit = min(path for path in (run / "edits").glob("[!.]*") if path.is_dir())
    paths = {"source": run / "source.mp4", "mask": edit / "mask.mp4", "edit": network_clip(edit)}
    check_record(run, ["source.mp4"])
    check_record(edit)
    clips = {label: read_clip(path, WHOLE).frames for label, path in paths.items()}
    shown = {label: [Image.fromarray(frame) for frame in to_pixels(clip)] for label, clip in clips.items()}
    record = read_edit(edit)
    if file_digest(record["target_image"]) != record.get("sha256"):
        raise FileError(f"{record['target_image']} has changed since the edit {edit}: make the edit again")
    with Image.open(record["target_image"]) as opened:
        return {"target image": [on_white(opened, shown["source"][0].size)], **shown}


def on_white(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the picture in another size, on white where it is transparent."""
    layer = picture.convert("RGBA")
    opaque = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return opaque.resize(size, Image.Resampling.LANCZOS)


def labelled(picture: Image.Image, label: str) -> Image.Image:
    """Return the picture with a line of text above it."""
    canvas = Image.new("RGB", (picture.width, picture.height + LABEL), "white")
    canvas.paste(picture, (0, LABEL))
    ImageDraw.Draw(canvas).text((1, 1), label, fill="black")
    return canvas


def joined(pictures: list[Image.Image], columns: int, gap: int = GAP) -> Image.Image:
    """Return pictures of one size in a grid on white."""
    (width, height), rows = pictures[0].size, -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        canvas.paste(picture, (i % columns * (width + gap), i // columns * (height + gap)))
    return canvas


def contact_sheet(runs: list[Path]) -> Image.Image:
    """Return two clips per line: a row each of source, mask and edit, beside the target image."""
    blocks = []
    for run in runs:
        clips = clips_of(run)
        (target,) = clips.pop("target image")
        cells = [labelled(target, "target image"), *[labelled(Image.new("RGB", target.size, "white"), "")] * 2]
        for row, (label, frames) in enumerate(clips.items()):
            shown = [frames[i] for i in SHOWN if i < len(frames)]
            texts = [label] + [""] * (len(shown) - 1)
            cells[row] = joined([cells[row], *map(labelled, shown, texts)], len(shown) + 1)
        blocks.append(labelled(joined(cells, 1), run.name.replace("_", " ")))
    return joined(blocks, 2, 6 * GAP)


def write_moving_picture(run: Path, path: Path, fps: float = 8.0) -> None:
    """Write source, target image, mask and edit side by side as an endless GIF."""
    clips = clips_of(run)
    frames = []
    for i in range(len(clips["source"])):
        cells = []
        for label in ("source", "target image", "mask", "edit"):
            picture = clips[label][i % len(clips[label])]
            size = (ZOOM * picture.width, ZOOM * picture.height)
            cells.append(labelled(picture.resize(size, Image.Resampling.LANCZOS), label))
        frames.append(joined(cells, len(cells)))
    palette = frames[0].quantize(255)  # one for all frames: colours that change from frame to frame flicker
    coloured = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    coloured[0].save(path, save_all=True, append_images=coloured[1:], duration=round(1000 / fps), loop=0, optimize=True)


def table(runs: list[Path]) -> str:
    """Return Markdown with a line per metric and a column per clip; the mean is over the clips that have the metric."""
    records = [read_metrics(run) for run in runs]
    found: list[dict[str, Any]] = [record["edits"][min(record["edits"])] for record in records]
    names = [run.name.replace("_", " ") for run in runs]
    lines = [f"| | mean | {' | '.join(names)} |", "| --- " * (2 + len(names)) + "|"]
    for key, (label, digits) in FIGURES.items():
        values = [figures.get(key) for figures in found]
        known = [value for value in values if value is not None]
        if known:
            better = records[0]["metrics"].get(key, {}).get("higher_is_better")
            cells = ["" if value is None else f"{value:.{digits}f}" for value in values]
            lines.append(f"| {label}{ARROWS[better]} | **{np.mean(known):.{digits}f}** | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write contact_sheet.png, named_clips.md and the moving picture."""
    described = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tave.roadside.edit_sheet", description=described)
    parser.add_argument("runs", type=Path, help="a folder of run folders, one per clip")
    parser.add_argument("docs", type=Path, help="where the files go")
    options = parser.parse_args()
    runs = [path.parent for path in sorted(options.runs.glob("*/metrics.json"))]
    if not runs:
        raise SystemExit(f"error: {options.runs} has no finished runs: make them with make sheet")
    options.docs.mkdir(parents=True, exist_ok=True)
    contact_sheet(runs).save(options.docs / "contact_sheet.png", optimize=True)
    (options.docs / "named_clips.md").write_text(f"{HEAD}\n{table(runs)}")
    if (hero := options.runs / HERO) in runs:
        write_moving_picture(hero, options.docs / f"{HERO}.gif")


if __name__ == "__main__":
    main()
