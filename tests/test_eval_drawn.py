"""What the truths of drawn clips measure: the motion of each point, shadow, yaw, instances, the old object."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eval import EvalError
from eval.cases import Case, Truth, read_cases
from eval.ideal import IdealLayers, instances_shown, light_left, residue, residue_old, shadow_iou, yaw_error
from eval.measure import Tools, measure
from eval.motion import still, warp_error
from eval.regions import psnr
from tave.roadside.cases import NAMED, STUDY, frames_of
from tave.roadside.scene import Scene
from tave.roadside.truth import truth_of
from tave.video import write_video
from tave.video.frames import from_pixels

SIZE = 48
NOISE = 8 / 127.5  # standard deviation, as of an edit 30 dB from what it should be


def write_run(folder: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> Path:
    """A run with one edit, the ideal clip, and a mask that is the union of both objects."""
    edit = folder / "edits/ideal"
    (edit / "truth").mkdir(parents=True)
    for path, name in ((folder / "source.mp4", "source"), (edit / "edited.mp4", "ideal")):
        write_video(path, from_pixels(arrays[name]), 8, lossless=True)
    mask = (arrays["source_mask"] | arrays["target_mask"]).astype(np.uint8)
    np.savez(edit / "soft_mask.npz", binary=mask, mask=mask, alpha=255 * mask)
    np.savez_compressed(edit / "truth/truth.npz", **arrays)  # type: ignore[arg-type]
    (edit / "truth/truth.json").write_text(json.dumps(facts))
    return folder


@cache
def drawn(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and facts of a named clip's truth; not to be changed."""
    return truth_of((NAMED | STUDY)[name], SIZE)


def case_of(name: str, folder: Path) -> tuple[Case, Truth]:
    case = next(read_cases(write_run(folder, *drawn(name))))
    assert case.truth is not None
    return case, case.truth


def noisy(clip: Tensor) -> Tensor:
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    return (clip + NOISE * noise).clamp(-1, 1)


# ---- the whole evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bus_to_suv", "boots_to_sandals", "car_to_van"])
def test_the_ideal_clip_is_measured_as_right(name: str, tmp_path: Path) -> None:
    case, truth = case_of(name, tmp_path)
    report = measure(case, Tools())
    figures = {key: figure.value for key, figure in report.figures.items()}
    assert figures["residue_old"] == 0 and figures["yaw_error"] == figures["yaw_error_ideal"] < 7.5  # half a step
    assert figures["shadow_iou"] == figures["shadow_iou_ideal"] > figures["shadow_iou_source"]
    assert figures.get("instances_shown") == (1 if name == "boots_to_sandals" else None)
    assert figures["ideal_psnr"] == 100 and figures["object_presence"] == 1
    source = measure(replace(case, edited=case.source), Tools()).figures
    assert (
        source["shadow_iou"].value == figures["shadow_iou_source"]
        and source["residue_old"].value == figures["residue_old_source"] > 0
    )
    if name == "boots_to_sandals":
        assert source["instances_shown"].value == 0
    else:
        # A shadow that changes with the object is no damage to the background.
        assert figures["background_psnr"] == 100 and "objects and shadows" in report.figures["background_psnr"].id
    # Points of two objects move along their own paths, and a mask along neither.
    assert "true motion of visible points" in report.figures["warp_error_object"].id
    assert figures["warp_error_object_source"] == warp_error(case.source, truth.source_motion, truth.source_mask)
    assert "mask_temporal_iou_flow" in figures


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_counted": None}, "truth.npz lacks source_counted"),
        ({"target_shadow": None}, "truth.npz lacks target_shadow"),
        ({"target_yaws": np.zeros((8, 24, 4, 4), bool)}, "target_yaws has shape .8, 24, 4, 4."),
        ({"target_yaws": np.zeros((8, 0, SIZE, SIZE), bool)}, "target_yaws has shape .8, 0,"),
        ({"target_motion": np.full((7, 2, SIZE, SIZE), np.nan, np.float16)}, "target_motion is no motion"),
        ({"target_motion": np.zeros((7, 2, SIZE, SIZE), np.uint8)}, "target_motion is no motion"),
        (dict.fromkeys(("source_motion", "target_motion")), "truth.npz lacks source_motion, target_motion"),
    ],
)
def test_a_truth_that_lacks_arrays_or_has_others_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    arrays, facts = drawn("bus_to_suv")
    run = write_run(tmp_path, arrays, facts)
    kept = {key: array for key, array in (arrays | changes).items() if array is not None}
    np.savez(run / "edits/ideal/truth/truth.npz", **kept)  # type: ignore[arg-type]
    with pytest.raises(EvalError, match=message):
        next(read_cases(run))


def test_the_layers_compose_the_ideal_clip(tmp_path: Path) -> None:
    _, truth = case_of("boots_to_sandals", tmp_path)  # which show more of the legs than boots
    composed, visible = truth.layers.render()
    assert (psnr(composed, truth.ideal, torch.ones_like(visible)) or 0) > 40
    assert float((visible ^ truth.target_mask).float().mean()) < 0.01  # none of it the shadow


# ---- motion ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bus_to_suv", "car_to_truck", "boots_to_sandals"])
def test_a_clip_is_steady_along_the_motion_of_its_own_object(name: str, tmp_path: Path) -> None:
    case, truth = case_of(name, tmp_path)
    unmoved = still(len(case.source), SIZE, SIZE)
    for clip, own, region in (
        (truth.source, truth.source_motion, truth.source_mask),
        (truth.ideal, truth.target_motion, truth.target_mask),
    ):
        along, without = (warp_error(clip, motion, region) for motion in (own, replace(own, flow=unmoved.flow)))
        assert along is not None and without is not None and along < 0.5 * without
        assert own.visible.any() and not (own.visible & ~region[1:]).any()
        assert not own.flow.movedim(1, -1)[~own.visible].any()  # that of a face seen edge on may be huge
    assert warp_error(truth.ideal, replace(truth.target_motion, visible=~unmoved.visible), truth.target_mask) is None


# ---- on scenes of a few pixels ---------------------------------------------------------------------------------------

GROUND, OLD, NEW, BOTH = (0.2, 0.1, 0.0), (-0.5, -1.0, -1.0), (0.9, -0.9, -0.9), (-0.8, -0.7, 0.9)


def painted(*boxes: tuple[slice, slice, tuple[float, float, float]], frames: int = 2) -> Tensor:
    """``f 3 24 32``: even ground with boxes of one colour each (rows, columns, colour)."""
    clip = torch.tensor(GROUND)[:, None, None].expand(frames, 3, 24, 32).clone()
    for rows, columns, colour in boxes:
        clip[:, :, rows, columns] = torch.tensor(colour)[:, None, None]
    return clip


def box(rows: slice, columns: slice, frames: int = 2) -> Tensor:
    region = torch.zeros(frames, 24, 32, dtype=torch.bool)
    region[:, rows, columns] = True
    return region


def layers(background: Tensor) -> IdealLayers:
    height, width = background.shape[2:]
    wide = torch.zeros(len(background), 4, height + 2 * (height // 16), width + 2 * (width // 8))
    return IdealLayers(background, wide, torch.zeros(len(background), 4, height, width))


ROWS = slice(8, 16)


def test_a_new_object_beside_its_place_is_no_old_object() -> None:
    old, new = box(ROWS, slice(4, 16)), box(ROWS, slice(16, 28))
    half = (ROWS, slice(4, 10), BOTH)  # a colour that both objects have
    source = painted((ROWS, slice(4, 16), OLD), half)
    ideal = painted((ROWS, slice(16, 28), NEW), (ROWS, slice(22, 28), BOTH))
    moved = painted((ROWS, slice(4, 16), NEW))  # nearer to the source's dark red than to the ground
    masks = source, ideal, old, new
    assert residue_old(ideal, *masks) == 0
    assert residue(moved, *masks) == 0.5 and residue_old(moved, *masks) == 0
    assert residue(source, *masks) == 1 and residue_old(source, *masks) == 0.5
    left = painted((ROWS, slice(10, 13), OLD))
    assert residue_old(left, *masks) == residue(left, *masks) == 0.25
    assert residue_old(source, source, ideal, old, old) is None
    nowhere = torch.zeros_like(new)  # a frame without the target has no colours to compare with
    assert residue_old(source, source, painted(), old, nowhere) == residue(source, source, painted(), old, nowhere) == 1


def shaded(columns: slice, light: float = 0.6) -> Tensor:
    """The ground with a shadow on it."""
    clip = painted()
    clip[:, :, 16:20, columns] = (clip[:, :, 16:20, columns] + 1) * light - 1
    return clip


def test_a_shadow_is_the_ground_with_less_light() -> None:
    old, new = box(ROWS, slice(0, 12)), box(ROWS, slice(8, 24))
    shadows = box(slice(16, 20), slice(0, 12)), box(slice(16, 20), slice(6, 24))
    source, ideal = shaded(slice(0, 12)), shaded(slice(6, 24))
    ideal[:, :, ROWS, 8:24], source[:, :, ROWS, 0:12] = (torch.tensor(c)[:, None, None] for c in (NEW, OLD))

    def score(edited: Tensor, right: Tensor = ideal, true: Tensor = shadows[1]) -> float | None:
        return shadow_iou(edited, source, right, painted(), (old, new), (shadows[0], true))

    assert score(ideal) == 1 and score(painted()) == 0
    # Below the target's rim, in the rows 17 to 19, and below the rest of the old shadow, in 16 to 19.
    rim = box(slice(7, 17), slice(7, 25))
    both, either = shadows[0] & shadows[1] & ~rim, (shadows[0] | shadows[1]) & ~rim
    assert score(source) == pytest.approx(int(both.sum()) / int(either.sum()))
    assert score(painted((slice(16, 20), slice(6, 24), (-0.9, -0.9, -0.9)))) == 0  # too dark: an object
    assert score(painted((slice(16, 20), slice(6, 24), (-0.3, -0.3, 0.3)))) == 0  # of another colour
    assert score(shaded(slice(6, 24), light=0.9)) == 0  # nearer to the light
    assert score(noisy(ideal)) == pytest.approx(1, abs=0.1)
    assert score(ideal, true=torch.zeros_like(new)) is None
    faint = shaded(slice(6, 24), light=0.995)
    assert score(faint, faint) is None  # nor is that of the ideal clip seen


def test_an_old_object_as_dark_as_the_shadow_is_none() -> None:
    new, shadow = box(slice(0, 4), slice(0, 4)), box(slice(16, 20), slice(6, 24))
    ideal, source = shaded(slice(6, 24)), shaded(slice(6, 24), light=0.65)
    given = source, ideal, painted()
    assert shadow_iou(source, *given, (shadow, new), (shadow, shadow)) == 0
    assert shadow_iou(source, *given, (torch.zeros_like(new), new), (shadow, shadow)) == 1


def test_light_is_what_the_ground_has_left_of_it() -> None:
    light = light_left(shaded(slice(6, 24), light=0.7), painted())
    assert light[:, 16:20, 6:24] == pytest.approx(0.7, abs=1e-6) and bool((light[:, :16] == 1).all())
    assert bool((light_left(painted((ROWS, slice(0, 8), NEW)), painted()) == 1).all())


def test_each_instance_counts_in_each_frame_that_shows_it() -> None:
    left, right = box(ROWS, slice(2, 10)), box(ROWS, slice(20, 28))
    right[1] = False
    right[1, 8, 20:24] = True  # a sliver of it
    source = painted((ROWS, slice(2, 10), OLD), (ROWS, slice(20, 28), OLD))
    ideal = painted((ROWS, slice(2, 10), NEW), (ROWS, slice(20, 28), NEW))
    given = source, ideal, painted(), torch.stack([left, right])
    assert instances_shown(ideal, *given) == 1 and instances_shown(noisy(ideal), *given) == 1
    assert instances_shown(source, *given) == instances_shown(painted(), *given) == 0
    assert instances_shown(painted((ROWS, slice(2, 10), NEW)), *given) == pytest.approx(2 / 3)
    assert instances_shown(painted((ROWS, slice(20, 28), NEW)), *given) == pytest.approx(1 / 3)
    assert instances_shown(ideal, source, ideal, painted(), left[None]) is None
    assert instances_shown(ideal, source, ideal, painted(), torch.zeros_like(given[3])) is None


def bars() -> Tensor:
    """``2 4 24 32``: a wide bar, a high one, the wide one again, and a square, at 0, 90, 180 and 270 degrees."""
    wide, high, square = (slice(10, 14), slice(6, 26)), (slice(2, 22), slice(14, 18)), (slice(8, 16), slice(12, 20))
    return torch.stack([box(*each) for each in (wide, high, wide, square)], dim=1)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (slice(10, 14), slice(6, 26), 0),  # also what 180 degrees look like
        (slice(2, 22), slice(14, 18), 90),
        (slice(2, 22), slice(17, 21), 90),  # three pixels to the right
        (slice(8, 16), slice(12, 20), 90),  # at 270
        (slice(0, 4), slice(0, 4), None),  # nothing around the target's place
        (slice(6, 18), slice(6, 26), None),  # no silhouette of the target
    ],
)
def test_a_yaw_is_that_of_the_silhouette_that_is_shown(rows: slice, columns: slice, expected: float | None) -> None:
    scene = layers(painted())
    nothing = torch.zeros_like(box(rows, columns))
    for edited in (painted((rows, columns, NEW)), noisy(painted((rows, columns, NEW)))):
        assert yaw_error(edited, scene, bars(), (nothing, nothing)) == expected
    assert yaw_error(painted(), scene, bars(), (nothing, nothing)) is None


def test_a_shadow_is_no_part_of_a_silhouette() -> None:
    edited, shadow = painted((slice(10, 14), slice(6, 26), NEW)), box(slice(14, 22), slice(12, 20))
    edited[:, :, 14:22, 12:20] = (edited[:, :, 14:22, 12:20] + 1) * 0.6 - 1
    scene, nothing = layers(painted()), torch.zeros_like(shadow)
    given = bars()
    given[:, 3] |= shadow  # the shadow looks like another yaw
    given[:, 3] |= given[:, 0]
    assert yaw_error(edited, scene, given, (nothing, nothing)) == 90
    assert yaw_error(edited, scene, given, (nothing, shadow)) == 0


# ---- on drawn clips --------------------------------------------------------------------------------------------------


def turned(scene: Scene, angle: float) -> Tensor:
    """The clip with its object turned on the spot, which still takes the same path."""
    shown = []
    for frame in range(scene.frames):
        x, z = scene.path(frame)
        held = replace(scene, x=x, z=z, yaw=scene.heading(frame) + angle, speed=0.0, turn=0.0, frames=1)
        shown.append(frames_of(held, SIZE))
    return from_pixels(np.concatenate(shown))


@pytest.mark.parametrize("angle", [0, 60, 90, 120])
def test_a_turned_target_has_its_angle_as_error(angle: float, tmp_path: Path) -> None:
    _, truth = case_of("car_to_truck", tmp_path)  # whose camera stands still
    edited = turned(NAMED["car_to_truck"].ideal, angle)
    for clip in (edited, noisy(edited)):
        assert yaw_error(clip, truth.layers, truth.yaws, truth.shadows) == pytest.approx(angle, abs=15)  # one step


DONE: dict[str, Callable[[Truth], Tensor]] = {
    "ideal": lambda truth: truth.ideal,
    "moved": lambda truth: truth.layers.render(-3, 1)[0],
    "half": lambda truth: torch.where((torch.arange(SIZE) < SIZE // 2), truth.ideal, truth.source),
    "source": lambda truth: truth.source,
}


@pytest.mark.parametrize("name", ["bus_to_suv", "car_to_truck", "boots_to_sandals", "car_to_van"])
def test_the_more_of_the_edit_is_done_the_better(name: str, tmp_path: Path) -> None:
    _, truth = case_of(name, tmp_path)
    clips = {key: make(truth) for key, make in DONE.items()}
    empty, masks = truth.layers.empty(), (truth.source_mask, truth.target_mask)
    old = {key: residue_old(clip, truth.source, truth.ideal, *masks) or 0 for key, clip in clips.items()}
    raw = {key: residue(clip, truth.source, truth.ideal, *masks) or 0 for key, clip in clips.items()}
    assert 0 == old["ideal"] <= old["moved"] <= old["half"] < old["source"] <= raw["source"] == 1
    assert all(old[key] <= raw[key] for key in clips)
    given = truth.source, truth.ideal, empty
    shadow = {key: shadow_iou(clip, *given, masks, truth.shadows) or 0 for key, clip in clips.items()}
    assert shadow["source"] <= shadow["half"] <= shadow["ideal"] > max(shadow["source"], shadow["moved"])
    if name == "boots_to_sandals":
        shown = {key: instances_shown(clip, *given, truth.instances) for key, clip in clips.items()}
        assert shown["ideal"] == 1 and shown["source"] == 0 and shown["half"] not in (None, 1)
        assert instances_shown(empty, *given, truth.instances) == 0
    else:
        yaw = yaw_error(clips["moved"], truth.layers, truth.yaws, truth.shadows)
        assert yaw is not None and yaw <= 15  # standing elsewhere is no turning
    assert yaw_error(empty, truth.layers, truth.yaws, truth.shadows) is None
