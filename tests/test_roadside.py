"""The drawn world: what is held out, what captions say, and that the known answers are true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tave.roadside import cases, draw, scene
from tave.roadside.cases import NAMED
from tave.roadside.scene import FIRST_HELD_OUT_SEED, NAMED_COMBINATIONS, Vehicle, caption, held_out, sample_scene
from tave.video import read_clip

CLIPS = Path(cases.__file__).parent / "clips"


def combination(case: cases.Case, vehicle: Vehicle) -> tuple[str, str, str, str]:
    return vehicle.kind, vehicle.color, vehicle.pattern, case.source.place


def test_named_clips_are_held_out_and_nothing_else_is_named() -> None:
    used = {combination(c, v) for c in NAMED.values() for v in (c.source.vehicle, c.target)}
    assert used == NAMED_COMBINATIONS
    assert all(held_out(v, c.source.place) for c in NAMED.values() for v in (c.source.vehicle, c.target))
    assert all(c.source.seed >= FIRST_HELD_OUT_SEED for c in NAMED.values())


def test_training_never_sees_what_is_held_out_and_the_exam_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for examining in (False, True):
        for _ in range(300):
            drawn = sample_scene(rng, examining=examining)
            assert held_out(drawn.vehicle, drawn.place) == examining
            assert (drawn.seed >= FIRST_HELD_OUT_SEED) == examining


def test_hold_out_leaves_every_value_to_learn_from() -> None:
    every = [(Vehicle(k, c, p), w) for k in scene.VEHICLES for c in scene.COLORS for p in scene.PATTERNS for w in scene.PLACES]
    kept = [(v, place) for v, place in every if not held_out(v, place)]
    assert 0.8 < len(kept) / len(every) < 0.95
    assert {(v.kind, v.color) for v, _ in kept} == {(v.kind, v.color) for v, _ in every}
    assert {(v.kind, v.pattern, place) for v, place in kept} == {(v.kind, v.pattern, place) for v, place in every}


def test_short_captions_do_not_name_the_pattern() -> None:
    dotted = Vehicle("bus", "blue", "dotted", "yellow")
    assert caption(dotted) == caption(replace(dotted, pattern="plain")) == "a blue bus"
    assert caption(dotted, -1, "beach") == "a blue bus driving left on a beach road"
    assert caption(dotted, pattern=True) == "a blue and yellow dotted bus"
    assert caption(Vehicle("suv", "orange")) == "an orange suv"


@pytest.mark.parametrize("name", list(NAMED))
def test_prompts_of_the_named_clips_leave_the_pattern_to_the_image(name: str) -> None:
    assert not {"striped", "dotted", "two-tone"} & set(NAMED[name].target_prompt.split())


def test_layers_add_up_to_the_frame() -> None:
    drive = replace(NAMED["bus_to_suv"].source, occluder="lamp", occluder_x=30.0)
    layers = draw.over(draw.vehicle_layer(drive, 2, 64), draw.background(drive, 2, 64))
    layers = draw.over(draw.occluder_layer(drive, 2, 64), layers)
    assert np.array_equal(draw.draw(drive, 2, 64), layers)
    hidden = draw.silhouette(drive, 2, 64) < draw.vehicle_layer(drive, 2, 64)[..., 3]
    assert hidden.any()


def test_outside_the_two_silhouettes_source_and_ideal_are_the_same() -> None:
    case = NAMED["suv_to_bus"]
    arrays, _ = cases.truth_of(case)
    outside = ~(arrays["source_mask"] | arrays["target_mask"])
    touched = (arrays["source"] != arrays["ideal"]).any(-1) & outside
    assert touched.mean() < 0.02  # the silhouettes' own soft edges
    assert np.array_equal(arrays["source"].shape, arrays["ideal"].shape)


def test_the_ideal_stands_where_the_source_stood() -> None:
    arrays, _ = cases.truth_of(NAMED["car_to_truck"])
    for old, new in zip(arrays["source_mask"], arrays["target_mask"], strict=True):
        feet = [np.flatnonzero(mask.any(1))[-1] for mask in (old, new)]
        middles = [np.flatnonzero(mask.any(0))[[0, -1]].mean() for mask in (old, new)]
        assert abs(feet[0] - feet[1]) <= 1
        assert abs(middles[0] - middles[1]) <= 1


@pytest.mark.parametrize("name", list(NAMED))
def test_shipped_clips_are_those_that_the_scenes_draw(name: str) -> None:
    case, folder = NAMED[name], CLIPS / name
    arrays, described = cases.truth_of(case)
    with np.load(folder / "truth" / "truth.npz") as stored:
        assert set(stored) == set(arrays)
        assert all(np.array_equal(stored[key], arrays[key]) for key in arrays)
    assert json.loads((folder / "truth" / "truth.json").read_text()) == described
    frames = read_clip(folder / "source.mp4").frames
    drawn = arrays["source"].transpose(0, 3, 1, 2) / 127.5 - 1
    error = np.mean((frames.numpy() - drawn) ** 2) / 4
    assert -10 * np.log10(error) > 38  # a real mp4, decoded like any other, yet close to what was drawn


def test_target_images_come_from_another_place_and_some_without_alpha() -> None:
    assert all(case.image_place != case.source.place for case in NAMED.values())
    assert sum(not case.alpha for case in NAMED.values()) >= 2
