"""All named clips at a glance: one picture of source, mask and edit for each, and one table of their figures.

python -m tave.roadside.sheet RUNS DOCS    RUNS: a folder of run folders named after the clips
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from tave.config import ReadOptions
from tave.video import contact_sheet, read_clip
from tave.video.frames import to_pixels

WHOLE = ReadOptions(frames=None, multiple=1)
SHOWN = (0, 2, 5, 7)  # frames of eight that a row shows
FIGURES = {
    "background_psnr_outside_mask": ("background outside the mask, dB", ">= 40", 1),
    "background_psnr": ("background, all of it, dB", "", 1),
    "mask_area_ratio": ("mask area / true union", "<= 1.6", 2),
    "residue": ("residue of the old object", "<= 0.05", 3),
    "object_presence": ("frames that show any object", "", 2),
    "mask_recall": ("recall of the old object", ">= 0.95", 3),
    "mask_iou_union": ("mask IoU with the union, before dilation", ">= 0.75", 3),
    "mask_iou_final": ("mask IoU with the union, as it ends", "", 3),
    "ideal_psnr": ("edit against the ideal, dB", "", 1),
    "ideal_psnr_aligned": ("the same, best shift, dB", "", 1),
    "judge_vehicle_accuracy": ("judge sees the vehicle", ">= 0.85", 2),
    "judge_color_accuracy": ("judge sees the colour", ">= 0.95", 2),
    "judge_pattern_accuracy": ("judge sees the pattern", "", 2),
    "warp_error_object": ("warp error of the object, levels", "", 1),
    "warp_error_object_source": ("the same of the source clip", "", 1),
}


def rows_of(run: Path) -> list[Tensor]:
    """Source, mask and edit of a run's first edit, ``f 3 H W`` each."""
    edit = next(path for path in sorted((run / "edits").iterdir()) if path.is_dir())
    paths = (run / "source.mp4", edit / "mask.mp4", edit / "edited.mp4")
    clips = [read_clip(path, WHOLE).frames for path in paths]
    return [clip[[i for i in SHOWN if i < len(clip)]] for clip in clips]


def picture(runs: list[Path]) -> Image.Image:
    """Two runs a line; a run is three rows of frames under its name."""
    blocks = [_titled(run) for run in runs]
    wide, high = blocks[0].size
    whole = Image.new("RGB", (2 * wide + 16, -(-len(blocks) // 2) * (high + 10)), "white")
    for i, block in enumerate(blocks):
        whole.paste(block, ((i % 2) * (wide + 16), (i // 2) * (high + 10)))
    return whole


def _titled(run: Path) -> Image.Image:
    sheet = contact_sheet(rows_of(run), columns=len(SHOWN))
    pixels = to_pixels(sheet)
    block = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + 16), "white")
    block.paste(Image.fromarray(pixels), (0, 16))
    ImageDraw.Draw(block).text((2, 2), run.name.replace("_", " "), fill="black")
    return block


def figures_of(run: Path) -> dict[str, Any]:
    """The figures of a run's first edit, and the two reconstructions."""
    metrics = json.loads((run / "metrics.json").read_text())
    (name, *_) = sorted(metrics["edits"])
    return metrics["edits"][name] | {key: metrics[key] for key in ("reconstruction_psnr", "autoencoder_psnr")}


def table(runs: list[Path]) -> str:
    """Markdown: a line for each figure, a column for each clip, the mean over those that have it, and the bar."""
    found = [figures_of(run) for run in runs]
    names = [run.name.replace("_", " ") for run in runs]
    lines = [f"| | bar | mean | {' | '.join(names)} |", "| --- " * (3 + len(names)) + "|"]
    for key, (label, bar, digits) in FIGURES.items():
        values = [figures.get(key) for figures in found]
        known = [value for value in values if value is not None]
        mean = f"**{sum(known) / len(known):.{digits}f}**" if known else ""
        cells = ["" if value is None else f"{value:.{digits}f}" for value in values]
        lines.append(f"| {label} | {bar} | {mean} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tave.roadside.sheet", description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("docs", type=Path)
    asked = parser.parse_args()
    runs = [path.parent for path in sorted(asked.runs.glob("*/metrics.json"))]
    if not runs:
        raise SystemExit(f"error: {asked.runs} holds no finished runs; make them with make sheet")
    asked.docs.mkdir(parents=True, exist_ok=True)
    picture(runs).save(asked.docs / "contact_sheet.png")
    (asked.docs / "named_clips.md").write_text(table(runs))
    print(asked.docs / "contact_sheet.png", asked.docs / "named_clips.md", sep="\n")


if __name__ == "__main__":
    main()
