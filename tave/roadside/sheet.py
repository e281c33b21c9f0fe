"""Pictures of the drawn world, to look at, and what a frame costs.

python -m tave.roadside.sheet FOLDER    writes named.png, groups.png, kinds.png and pasted.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tave.regions import box_of
from tave.roadside.cases import NAMED, SIZE, Case, benchmark, small_benchmark, target_image
from tave.roadside.draw import draw, object_layer, occluder_layer, over, silhouette, to_bytes, without_object
from tave.roadside.edit_sheet import joined, labelled, on_white
from tave.roadside.sample import patterns_of, photograph, places_of
from tave.roadside.scene import COLORS, HOURS, KINDS, Scene, Subject

GAP = 4  # px
SHOWN = 4  # frames of a clip
LABELS = {"source": SHOWN, "photograph": 1, "ideal": SHOWN}  # and how many pictures each has


def frame_of(scene: Scene, frame: int) -> Image.Image:
    """Return a frame at the clips' size."""
    return Image.fromarray(to_bytes(draw(scene, frame, SIZE)))


def photo_of(case: Case) -> Image.Image:
    """Return the target image at the clips' size, on white if it is cut out."""
    return on_white(target_image(case), (SIZE, SIZE))


def case_sheet(cases: list[Case]) -> Image.Image:
    """Return two cases per line: frames of the source, the photograph, frames of the ideal clip."""
    blocks = []
    for case in cases:
        moments = np.linspace(0, case.source.frames - 1, SHOWN).round().astype(int)
        source, ideal = ([frame_of(scene, int(i)) for i in moments] for scene in (case.source, case.ideal))
        texts = [text for label, count in LABELS.items() for text in (label, *[""] * (count - 1))]
        cells = list(map(labelled, [*source, photo_of(case), *ideal], texts))
        title = f"{case.name.replace('_', ' ')}: {case.source_prompt} -> {case.target_prompt}"
        blocks.append(labelled(joined(cells, len(cells)), title))
    return joined(blocks, 2, 4 * GAP)


def kind_sheet(yaws: int = 8, size: int = 2 * SIZE) -> Image.Image:
    """Return a line for each kind with as many ``yaws`` from 0 on, in all hours and patterns; ``size`` in px."""
    cells = []
    for row, kind in enumerate(KINDS):
        for column in range(yaws):
            color, accent = (COLORS[(row + shift) % len(COLORS)] for shift in (0, 4))
            patterns = patterns_of(kind)
            subject = Subject(kind, color, patterns[(row + column) % len(patterns)], accent)
            places, hour, yaw = places_of(subject), HOURS[column // 2 % len(HOURS)], column * 360 / yaws
            scene = photograph(subject, places[row % len(places)], row, yaw=yaw, hour=hour, sun=250.0)
            label = f"{kind}, {subject.pattern}, {hour}, {yaw:.0f} degrees"
            cells.append(labelled(Image.fromarray(to_bytes(draw(scene, 0, size))), label))
    return joined(cells, yaws)


def pasted(case: Case, frame: int) -> Image.Image:
    """Return the frame with the photograph's object pasted in the right place: equal area, same ground, better side."""
    cut = to_bytes(object_layer(case.photo, 0, 2 * SIZE))
    top, bottom, left, right = box_of(cut[..., 3] > 127)
    inside = Image.fromarray(cut, "RGBa").crop((left, top, right, bottom))
    mask = silhouette(case.ideal, frame, SIZE) >= 0.5
    _, foot, x0, x1 = box_of(mask)
    scale = np.sqrt(mask.sum() / (np.asarray(inside)[..., 3] > 127).sum())
    fitted = inside.resize((max(1, round(inside.width * scale)), max(1, round(inside.height * scale))))
    layers = []
    for side in (fitted, ImageOps.mirror(fitted)):
        layer = Image.new("RGBa", (SIZE, SIZE))
        layer.paste(side, (round((x0 + x1 - side.width) / 2), foot - side.height))
        layers.append(np.asarray(layer, np.float32) / 255)
    best = max(layers, key=lambda layer: int((mask & (layer[..., 3] >= 0.5)).sum()))  # as the control pasted_true_pose
    picture = over(best, without_object(case.source, frame, SIZE))
    return Image.fromarray(to_bytes(over(occluder_layer(case.source, frame, SIZE), picture)))


def paste_sheet(cases: list[Case]) -> Image.Image:
    """Return for each case the photograph, a frame of the ideal clip, and the same with the photograph's object."""
    blocks = []
    for case in cases:
        middle = case.source.frames // 2
        pictures = [photo_of(case), frame_of(case.ideal, middle), pasted(case, middle)]
        blocks.append(labelled(joined([picture.resize((2 * SIZE, 2 * SIZE)) for picture in pictures], 3), case.name))
    return joined(blocks, 3, 4 * GAP)


def frame_cost(rounds: int = 3) -> float:
    """Return the process's milliseconds for a drawn frame, over the named clips."""
    scenes = [scene for case in NAMED.values() for scene in (case.source, case.ideal)]
    start = time.process_time()
    for _ in range(rounds):
        for scene in scenes:
            for frame in range(scene.frames):
                draw(scene, frame, SIZE)
    return 1000 * (time.process_time() - start) / (rounds * sum(scene.frames for scene in scenes))


def main() -> None:
    """Write the pictures and print what a frame costs."""
    parser = argparse.ArgumentParser(prog="python -m tave.roadside.sheet", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    groups = [case for case in small_benchmark() if case.name.endswith("_0")]
    turned = [case for group in ("turning", "other_light") for case in benchmark() if case.name.startswith(group)]
    sheets = {
        "named": case_sheet(list(NAMED.values())),
        "groups": case_sheet(groups),
        "kinds": kind_sheet(),
        "pasted": paste_sheet(turned),
    }
    for name, picture in sheets.items():
        picture.save(folder / f"{name}.png", optimize=True)
        print(folder / f"{name}.png")
    print(f"{frame_cost():.2f} ms of process time for a frame of {SIZE} x {SIZE} px")


if __name__ == "__main__":
    main()
