"""The drawn world: its layers, perspective, light and motion are true; training never sees what is held out."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from tave.files import file_digest, write_json
from tave.listing import read_listing
from tave.record import read_sums
from tave.roadside import cases, draw, edit_sheet, places, resolver, sheet, truth
from tave.roadside.camera import LIGHTS, SUPERSAMPLE, Camera, placed, turned
from tave.roadside.cases import GROUPS, NAMED, STUDY, Case, benchmark, groups_of, small_benchmark
from tave.roadside.draw import legs_layer, object_layer, occluder_layer, over, shadow_layer
from tave.roadside.files import draw_case, draw_set
from tave.roadside.places import background
from tave.roadside.sample import patterns_of, photograph, places_of, sample_photograph, sample_scene
from tave.roadside.scene import (
    COLORS,
    FIRST_HELD_OUT_SEED,
    HOURS,
    KINDS,
    NAMED_COMBINATIONS,
    PATTERNS,
    SHOES,
    STRIDE,
    UNITS,
    VEHICLES,
    Scene,
    Subject,
    caption,
    held_out,
    motion_of,
    never_seen,
    scene_caption,
    vocabulary,
)
from tave.roadside.shapes import RGB, _area, shape_of
from tave.roadside.truth import truth_of
from tave.video import read_clip

CONF = Path(__file__).parents[1] / "conf"
EVERY = [*NAMED.values(), *STUDY.values(), *benchmark()]
BUS = Scene(Subject("bus", "red", "striped"), "city", 7, sun=270.0, yaw=20.0, turn=-7.0, speed=2.0, layout="square")
WALK = Scene(Subject("sneaker", "red", "dotted"), "park", 7, sun=240.0, x=-11.0, speed=3.0)
MOVES = {
    "turning": BUS,
    "panned": replace(BUS, turn=0.0, pan=1.5, tilt=0.4, layout="across"),
    "shoes": WALK,
    "turning_shoes": replace(WALK, turn=6.0, layout="square"),
}


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", [replace(BUS, occluder="lamp", occluder_x=30.0), WALK], ids=["vehicle", "shoes"])
def test_layers_add_up_to_the_frame(scene: Scene) -> None:
    lit = background(scene, 2, 64) * (1 - shadow_layer(scene, 2, 64)[..., None])
    below = over(legs_layer(scene, 2, 64), lit)
    whole = over(occluder_layer(scene, 2, 64), over(object_layer(scene, 2, 64), below))
    assert np.array_equal(draw.draw(scene, 2, 64), whole)


@pytest.mark.parametrize("name", ["sneakers_to_boots", "bus_to_dotted_bus", "car_to_van"])
def test_the_ideal_clip_is_composed_of_the_truth(name: str) -> None:
    arrays, _ = truth_of(NAMED[name], 48)
    layer = arrays["target_layer"][:, 3:-3, 6:-6] / np.float32(255)
    straight = np.concatenate([layer[..., :3] * layer[..., 3:], layer[..., 3:]], -1)
    occluder = arrays["occluder"] / np.float32(255)
    occluder[..., :3] *= occluder[..., 3:]
    composed = over(occluder, over(straight, arrays["background"] / np.float32(255)))
    inside = range(2, 6)  # frames in which no edge of the object is rounded where the picture, or its margin, ends
    error = np.abs(composed - arrays["ideal"] / np.float32(255)).max(-1)[inside]
    legs = np.stack([legs_layer(NAMED[name].ideal, i, 48)[..., 3] for i in inside])
    assert error[(legs == 0) | (legs == 1)].max() < 3 / 255  # each layer is rounded once
    assert error.max() <= 0.25 * LIGHTS[NAMED[name].source.hour].strength  # of legs' edges a shadow knows nothing


@pytest.mark.parametrize("scene", [BUS, WALK], ids=["vehicle", "shoes"])
def test_a_drawing_of_twice_the_size_boxed_down_is_the_drawing(scene: Scene) -> None:
    small, large = draw.draw(scene, 1, 96), draw.draw(scene, 1, 192)
    boxed = large.reshape(96, 2, 96, 2, 3).mean((1, 3))
    aside = np.abs(small[:, 1:] - small[:, :-1]).mean()  # what a shift by one pixel changes
    assert np.abs(boxed - small).mean() < 0.25 * aside  # edges are within a quarter of a pixel, one of those drawn on


@pytest.mark.parametrize("name", list(NAMED))
def test_source_and_ideal_differ_only_at_the_objects_and_their_shadows(name: str) -> None:
    case = NAMED[name]
    for i in range(0, case.source.frames, 3):
        scenes = (case.source, case.ideal)
        covered = [object_layer(scene, i, 96)[..., 3] + shadow_layer(scene, i, 96) for scene in scenes]
        outside = covered[0] + covered[1] == 0
        source, ideal = (draw.draw(scene, i, 96) for scene in scenes)
        assert np.array_equal(source[outside], ideal[outside]) and outside.mean() > 0.5
        assert not np.array_equal(source, ideal)


@pytest.mark.parametrize("name", list(NAMED))
def test_the_ideal_stands_where_the_source_stood(name: str) -> None:
    case = NAMED[name]
    for i in range(case.source.frames):
        assert case.source.placements(i) == case.ideal.placements(i)
        ground = np.array([(*case.source.path(i), 0.0)])[:, [0, 2, 1]]
        x, y = Camera.of(case.source, i).project(ground)[0]
        for scene in (case.source, case.ideal):
            x0, y0, x1, y1 = draw.outline_box(scene, i)
            assert x0 < x < x1 and y0 < y and abs(y1 - y) < 0.5 * (y1 - y0)


@pytest.mark.parametrize(("kind", "pattern"), [(kind, each) for kind in KINDS for each in patterns_of(kind)[1:]])
def test_most_of_a_side_has_the_colour_that_captions_name(kind: str, pattern: str) -> None:
    subject = Subject(kind, "red", pattern, "blue")
    shape, covered = shape_of(subject), {"red": 0.0, "blue": 0.0}
    for face in shape.faces:
        if face.normal[2] == 1:
            for patch in face.patches:
                for name in covered:
                    if patch.color == RGB[name]:
                        covered[name] += abs(_area(shape.corners[patch.first : patch.last, :2]))
    assert 0.1 < covered["blue"] / covered["red"] < 0.5  # the accent is painted over the colour


def test_no_leg_ends_inside_the_picture() -> None:
    """Neither from afar nor from above, nor as the camera tilts."""
    far = replace(WALK, z=112.5, eye=15.5, tilt=-0.6, frames=8)
    for frame in (0, 7):
        tops = [min(polygon[:, 1].min() for polygon, _ in draw.leg(far, frame, number, Camera.of(far, frame)))
                for number in range(2)]  # fmt: skip
        assert max(tops) < 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_sinks_into_the_ground_and_something_stands_on_it(kind: str) -> None:
    scene = Scene(Subject(kind, "red"), "city", 1, speed=STRIDE / 40 if kind in SHOES else 1.0, frames=40)
    shape = shape_of(scene.subject)
    points = [shape.corners, *(draw.tyre(wheel, 1.0) for wheel in shape.wheels)]
    for frame in range(scene.frames):
        each = [placed(p, at, turned(at))[:, 1].min() for p in points for at in scene.placements(frame)]
        assert min(each) == pytest.approx(0, abs=0.05)  # a tyre is drawn with corners


def _nearest(scene: Scene, frame: int, size: int) -> np.ndarray:
    """Return the number of the face that each pixel's ray meets first, ``H W``, -1 for none: without painting order."""
    camera, shape, eye = Camera.of(scene, frame), shape_of(scene.subject), np.array([0.0, scene.eye, 0.0])
    pixels = (np.indices((size, size))[::-1].reshape(2, -1).T + 0.5) * UNITS / size
    across, down = ((pixels - (UNITS / 2, scene.horizon) - camera.shift) / camera.lens).T
    rays = np.stack([across, -down, np.ones_like(across)], 1)
    depth, found = np.full(len(rays), np.inf), np.full(len(rays), -1, np.int16)
    for number, placement in enumerate(scene.placements(frame)):
        rotation = turned(placement)
        world = placed(shape.corners, placement, rotation)
        for face in shape.faces:
            normal, outline = rotation @ face.normal, world[face.patches[0].first : face.patches[0].last]
            towards = np.minimum(rays @ normal, -1e-6)
            far = normal @ (outline[0] - eye) / towards
            hit = eye + rays * far[:, None]
            sides = [np.cross(b - a, hit - a) @ normal for a, b in zip(outline, np.roll(outline, -1, 0), strict=True)]
            inside = np.all(np.array(sides) >= 0, 0) | np.all(np.array(sides) <= 0, 0)
            nearer = inside & (rays @ normal < -1e-6) & (far > 0) & (far < depth)
            depth[nearer], found[nearer] = far[nearer], face.number + number * len(shape.faces)
    return found.reshape(size, size)


@pytest.mark.parametrize("kind", KINDS)
def test_painting_order_shows_the_nearest_face_from_every_side(kind: str) -> None:
    """Away from faces' edges, which are rounded to pixels; wheels and legs are left out."""
    around = np.ones((3, 3), np.uint8)
    for number, yaw in enumerate(range(0, 360, 15)):
        scene = photograph(Subject(kind, "red"), "city", 1, yaw=float(yaw))
        scene = replace(scene, step=number * 0.31 % 1)
        if number % 2:  # as near as clips take it
            scene = replace(scene, lens=90.0, z=max(45.0, scene.z * 90 / scene.lens))
        expected, seen = _nearest(scene, 0, 64), truth._faces_seen(scene, 0, 64)
        sure = (cv2.dilate(expected, around) == cv2.erode(expected, around)) & (seen >= 0)
        assert sure.any() and np.array_equal(seen[sure], expected[sure])


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_change_colours_and_never_the_silhouette(kind: str) -> None:
    scenes = [replace(BUS, subject=Subject(kind, "red", pattern)) for pattern in PATTERNS]
    layers = [object_layer(scene, 1, 96) for scene in scenes]
    for layer in layers[1:]:  # but for an edge's rounding by one of the pixels that are drawn on
        assert np.abs(layers[0][..., 3] - layer[..., 3]).max() <= 1 / SUPERSAMPLE + 1 / 255
    assert all(np.abs(a - b)[..., :3].max() > 0.3 for i, a in enumerate(layers) for b in layers[:i])


# ---- light -----------------------------------------------------------------------------------------------------------


def _brightness(scene: Scene, point: tuple[float, float, float]) -> float:
    """Return the mean of R, G, B where the picture shows a ``point`` of the object, in its own coordinates."""
    (placement,) = scene.placements(0)
    world = placed(np.array([point]), placement, turned(placement))
    x, y = (Camera.of(scene, 0).project(world)[0] * 192 / UNITS).astype(int)
    return float(draw.draw(scene, 0, 192)[y, x].mean())


@pytest.mark.parametrize("hour", ["noon", "dusk", "night"])
def test_a_face_that_turns_towards_the_light_gets_brighter(hour: str) -> None:
    bus = replace(BUS, subject=Subject("bus", "gray"), hour=hour, turn=0.0, sun=270.0)
    yaws = (5.0, 25.0, 45.0, 65.0)
    side = [_brightness(replace(bus, yaw=yaw), (-5.0, 5.0, -5.6)) for yaw in yaws]
    rear = [_brightness(replace(bus, yaw=yaw), (-16.0, 6.5, 0.0)) for yaw in yaws[1:]]
    assert all(a > b for a, b in pairwise(side)) and all(a < b for a, b in pairwise(rear))
    lit, away = (_brightness(replace(bus, yaw=5.0, sun=sun), (-5.0, 5.0, -5.6)) for sun in (270.0, 90.0))
    assert lit > 1.1 * away


def test_the_shadow_falls_away_from_the_sun_and_farther_at_dusk() -> None:
    van = replace(BUS, subject=Subject("van", "red"), yaw=270.0, turn=0.0, speed=0.0, hour="dusk")

    def reach(hour: str, sun: float) -> tuple[float, float]:
        """How far the shadow reaches to the left and to the right of the middle, in pixels."""
        dark = shadow_layer(replace(van, hour=hour, sun=sun), 0, 96)
        columns = np.flatnonzero((dark >= 0.5 * LIGHTS[hour].strength).any(0))
        return 47.5 - columns[0], columns[-1] - 47.5

    for hour in HOURS:
        (left, right), mirrored = reach(hour, 0.0), reach(hour, 180.0)
        assert left > right and abs(mirrored[1] - left) <= 1 and abs(mirrored[0] - right) <= 1
    assert reach("dusk", 0.0)[0] > 1.5 * reach("noon", 0.0)[0] > 1.5 * reach("overcast", 0.0)[1]


# ---- shoes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHOES)
def test_instances_are_disjoint_parts_of_the_object_and_the_near_one_hides_the_far_one(kind: str) -> None:
    walk = replace(WALK, subject=Subject(kind, "red"))
    shares = []
    for frame in range(walk.frames):
        whole = draw.silhouette(walk, frame, 96)
        each = [draw.silhouette(walk, frame, 96, number) for number in range(2)]
        assert np.allclose(sum(each), whole, atol=2 / 255)  # each is rounded
        left, right = truth.instance_masks(walk, frame, 96)
        assert not (left & right).any() and np.array_equal(left | right, whole >= 0.5)
        shares.append(left.sum() / right.sum())
    assert min(shares) < 0.5  # the left shoe is behind when it walks to the right


@pytest.mark.parametrize("turn", [0.0, 5.0])
def test_one_foot_stands_still_while_the_other_swings(turn: float) -> None:
    walk = replace(WALK, speed=0.7, turn=turn / 4, frames=90)
    feet = [walk.placements(frame) for frame in range(walk.frames)]
    steps = np.zeros(2, int)
    for before, after in pairwise(feet):
        moved = [np.abs(np.subtract((a.x, a.y, a.z, a.yaw, a.pitch), (b.x, b.y, b.z, b.yaw, b.pitch))).max()
                 for a, b in zip(before, after, strict=True)]  # fmt: skip
        standing = [b.y == a.y == 0 and b.pitch == a.pitch == 0 for a, b in zip(before, after, strict=True)]
        assert any(standing) or min(moved) < 0.7  # at the moment of change
        assert all(way < 1e-6 for way, stands in zip(moved, standing, strict=True) if stands)
        steps += [way > 0.1 for way in moved]
    assert (steps > 20).all()  # both feet walk


# ---- path, camera, occluder ------------------------------------------------------------------------------------------


def test_the_path_is_the_exact_arc() -> None:
    circle = replace(BUS, turn=45.0)
    assert np.allclose(circle.path(8), circle.path(0)) and circle.heading(8) == pytest.approx(circle.heading(0))
    length = sum(float(np.hypot(*np.subtract(circle.path((i + 1) / 100), circle.path(i / 100)))) for i in range(800))
    assert length == pytest.approx(8 * circle.speed, rel=1e-4)
    straight = replace(BUS, turn=0.0)
    assert np.allclose(replace(BUS, turn=1e-5).path(7), straight.path(7), atol=1e-4)
    assert np.hypot(*np.subtract(straight.path(7), straight.path(0))) == pytest.approx(7 * straight.speed)


def test_wheels_turn_by_the_way_over_their_radius() -> None:
    (radius,) = {wheel.radius for wheel in shape_of(Subject("car", "red")).wheels}

    def rolled(way: float) -> np.ndarray:
        return object_layer(Scene(Subject("car", "red"), "city", 1, x=-way, z=45.0, speed=way, horizon=20.0), 1, 96)

    still, half, quarter = (rolled(angle * radius) for angle in (0.0, np.pi, np.pi / 2))
    assert np.abs(still - half).max() < 0.05  # the bar on a hub looks the same after half a turn
    assert np.abs(still - quarter).max() > 0.3


@pytest.mark.parametrize(("axis", "moved"), [(1, {"pan": UNITS / 96}), (0, {"tilt": UNITS / 96})])
def test_a_pan_and_a_tilt_move_the_picture_by_exactly_that(axis: int, moved: dict[str, float]) -> None:
    scene = replace(BUS, **moved)
    first, later = (np.moveaxis(background(scene, i, 96), axis, 0) for i in (0, 5))
    same = np.array_equal(later[:-5], first[5:]) if axis else np.array_equal(later[5:], first[:-5])
    assert same and not np.array_equal(first, later)
    point = np.array([[3.0, 2.0, 80.0]])
    way = Camera.of(scene, 5).project(point) - Camera.of(scene, 0).project(point)
    assert np.allclose(way * 96 / UNITS, [(-5, 0)] if axis else [(0, 5)])


@pytest.mark.parametrize("name", [case.name for case in EVERY if case.source.occluder])
def test_what_passes_in_front_survives_the_ideal_edit(name: str) -> None:
    case = cases.find_case(name)
    hidden = 0.0
    for i in range(case.source.frames):
        front = occluder_layer(case.source, i, 96)
        whole = front[..., 3] == 1
        source, ideal = (draw.draw(scene, i, 96) for scene in (case.source, case.ideal))
        assert whole.any() and np.array_equal(source[whole], ideal[whole])
        assert np.allclose(source[whole], front[whole][:, :3])
        hidden += object_layer(case.ideal, i, 96)[whole][:, 3].sum()
    assert hidden > 0  # the object is behind it at some time


# ---- true motion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MOVES))
def test_true_motion_moves_the_earlier_frame_onto_the_later_one(name: str) -> None:
    scene, size = MOVES[name], 192
    warped, unwarped, share = [], [], []
    for frame in range(1, scene.frames):
        flow, counts = truth.true_motion(scene, frame, size)
        before, now = (draw.draw(scene, i, size) for i in (frame - 1, frame))
        at = (np.indices((size, size), dtype=np.float32)[::-1] + flow).astype(np.float32)
        moved = cv2.remap(before, at[0], at[1], cv2.INTER_LINEAR)
        warped.append(np.abs(moved - now)[counts].mean())
        unwarped.append(np.abs(before - now)[counts].mean())
        share.append(counts.sum() / (draw.silhouette(scene, frame, size) > 0.98).sum())
    assert np.mean(warped) < 0.25 * np.mean(unwarped) and np.mean(share) > 0.4


def test_true_motion_of_a_still_scene_is_zero_and_counts_wherever_a_face_is_seen() -> None:
    still = replace(BUS, speed=0.0, turn=0.0)
    flow, counts = truth.true_motion(still, 3, 96)
    seen = (truth._faces_seen(still, 3, 96) >= 0) & (draw.silhouette(still, 3, 96) > 0.98)
    assert np.array_equal(counts, seen) and counts.any() and np.abs(flow).max() < 1e-4


def test_flows_that_do_not_count_are_zero_and_the_rest_points_into_the_picture() -> None:
    """An object that comes so near that it reaches beyond the picture and behind the camera."""
    near = Scene(Subject("bus", "red"), "city", 1, z=36.0, yaw=255.0, speed=7.0, layout="ahead")
    assert min(placed(shape_of(near.subject).corners, *_standing(near, 3))[:, 2]) < 0
    for frame in range(1, 4):
        flow, counts = truth.true_motion(near, frame, 64)
        assert not flow[:, ~counts].any()
        y, x = np.nonzero(counts)
        there = np.stack([x, y]) + flow[:, counts]
        assert (there >= -0.51).all() and (there < 63.51).all()


def _standing(scene: Scene, frame: int) -> tuple:
    (placement,) = scene.placements(frame)
    return placement, turned(placement)


@pytest.mark.parametrize("name", list(MOVES))
def test_the_first_of_other_yaws_is_the_silhouette_and_the_others_are_turned(name: str) -> None:
    scene = MOVES[name]
    for frame in (0, 5):
        masks = truth.other_yaws(scene, frame, 48)
        assert masks.shape == (360 // truth.YAW_STEP, 48, 48) and masks.dtype == bool
        assert np.array_equal(masks[0], draw.silhouette(scene, frame, 48) >= 0.5)
        assert (masks != masks[0]).any((1, 2))[1:].all() and masks.any((1, 2)).all()
    quarter = replace(BUS, turn=0.0, speed=0.0)
    ahead = truth.other_yaws(quarter, 0, 48)[90 // truth.YAW_STEP]
    assert np.array_equal(ahead, draw.silhouette(replace(quarter, yaw=quarter.yaw + 90), 0, 48) >= 0.5)


# ---- captions --------------------------------------------------------------------------------------------------------


def test_captions() -> None:
    dotted, boots = Subject("bus", "blue", "dotted", "yellow"), Subject("boot", "orange")
    assert caption(dotted) == caption(replace(dotted, pattern="plain")) == "a blue bus"
    assert caption(dotted, "left", "beach", "night") == "a blue bus driving left on a beach road at night"
    assert caption(dotted, pattern=True) == "a blue and yellow dotted bus"
    assert caption(boots, pattern=True) == "plain orange boots" and caption(Subject("suv", "orange")) == "an orange suv"
    assert caption(boots, "toward the camera", "park") == "orange boots walking toward the camera in a park"
    assert [motion_of(yaw) for yaw in (0, 90, 180, 270)] == ["right", "away", "left", "toward the camera"]
    assert scene_caption(NAMED["bus_to_suv"].source) == "a white bus on a mountain road"


def test_every_word_is_in_the_vocabulary_and_prompts_never_name_a_pattern() -> None:
    words = vocabulary()
    assert len(words) == len(set(words))
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(200)] + [case.ideal for case in EVERY]
    for scene in scenes:
        prompt, subject = scene_caption(scene), scene.subject
        long = caption(subject, scene.motion, scene.place, scene.hour, pattern=True)
        assert not set(PATTERNS) & set(f"{caption(subject)} {prompt}".split())
        assert subject.pattern in long.split() and set(f"{prompt} {long}".split()) <= set(words)
        assert prompt == scene_caption(replace(scene, subject=replace(subject, pattern="striped")))


# ---- hold-out --------------------------------------------------------------------------------------------------------


def combinations(case: Case) -> set[tuple[str, str, str, str]]:
    return {(s.kind, s.color, s.pattern, case.source.place) for s in (case.source.subject, case.target)}


@pytest.mark.parametrize("unseen", [False, True])
def test_training_never_uses_what_is_held_out_and_the_exam_nothing_else(unseen: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = sample_scene(rng, unseen=unseen)
        assert (scene.seed >= FIRST_HELD_OUT_SEED) == unseen
        for frame in range(scene.frames):
            assert held_out(scene.subject, scene.place, scene.hour, scene.heading(frame)) == unseen


def test_photographs_for_training_show_nothing_that_is_held_out() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        subject = sample_scene(rng).subject
        photo = sample_photograph(rng, subject)
        assert photo.subject == subject and photo.seed < FIRST_HELD_OUT_SEED
        assert not held_out(subject, photo.place, photo.hour, photo.yaw)


def test_hold_out_leaves_every_value_to_learn_from() -> None:
    every = [
        (subject, place)
        for parts in product(KINDS, COLORS, PATTERNS)
        for subject in [Subject(*parts)]
        for place in places_of(subject)
    ]
    kept = [(subject, place) for subject, place in every if not never_seen(subject, place)]
    assert 0.8 < len(kept) / len(every) < 0.95
    assert {(s.kind, s.color) for s, _ in kept} == {(s.kind, s.color) for s, _ in every}
    assert {(s.kind, s.pattern, place) for s, place in kept} == {(s.kind, s.pattern, place) for s, place in every}
    views = list(product(HOURS, range(0, 360, 45)))
    shown = {(s.kind, hour, yaw) for s, place in kept for hour, yaw in views if not held_out(s, place, hour, yaw)}
    assert shown == {(kind, hour, yaw) for kind in KINDS for hour, yaw in views}


def test_all_cases_are_held_out_and_no_two_lists_share_a_combination_or_a_skyline() -> None:
    for case in EVERY:
        assert all(never_seen(subject, case.source.place) for subject in (case.source.subject, case.target))
        assert min(case.source.seed, case.photo.seed) >= FIRST_HELD_OUT_SEED
    named, study, listed = (
        set().union(*map(combinations, each)) for each in (NAMED.values(), STUDY.values(), benchmark())
    )
    assert named == NAMED_COMBINATIONS
    assert not study & (named | listed) and not named & listed
    assert len({seed for case in EVERY for seed in (case.source.seed, case.photo.seed)}) == 2 * len(EVERY)
    assert len({case.name for case in EVERY}) == len(EVERY)


# ---- benchmark -------------------------------------------------------------------------------------------------------


def test_the_benchmark_has_its_cases_of_each_group() -> None:
    assert len(benchmark()) == 60 and list(GROUPS.values())[-2:] == [GROUPS["turning"], GROUPS["other_light"]]
    for group, (_, count) in GROUPS.items():
        own = [case for case in benchmark() if case.name.startswith(f"{group}_")]
        assert len(own) == count == (12 if group in ("turning", "other_light") else 4)
        assert all(group in groups_of(case) for case in own)
    small = [case.name for case in small_benchmark()]
    assert len(small) == 12 and {name.rsplit("_", 1)[0] for name in small} == set(GROUPS)


def test_photographs_are_taken_elsewhere_and_from_another_side() -> None:
    for case in EVERY:
        turned = [abs((case.source.heading(i) - case.photo.yaw + 180) % 360 - 180) for i in range(case.source.frames)]
        assert min(turned) >= cases.LEAST_VIEW_CHANGE and case.photo.place != case.source.place
        x0, y0, x1, y1 = draw.outline_box(case.photo, 0)
        assert x1 - x0 < UNITS and 0 < y0 < y1 < UNITS  # of its height nothing is cut off


def test_both_objects_of_each_case_stay_in_the_picture() -> None:
    for case in benchmark():
        for scene, frame in product((case.source, case.ideal), range(0, case.source.frames, 3)):
            inside, whole = (object_layer(scene, frame, 32, margin)[..., 3].sum() for margin in ((0, 0), (32, 32)))
            assert inside >= cases.INSIDE * whole > 0


def test_named_clips_are_those_that_the_patent_and_the_method_ask_for() -> None:
    assert len(NAMED) == 8 and next(iter(NAMED)) == "bus_to_suv"
    turning = [name for name, case in NAMED.items() if case.source.motion == "turning"]
    assert "bus_to_suv" in turning and len(turning) >= 2
    assert any(case.source.hour == "night" for case in NAMED.values())
    assert any(case.target.pattern != "plain" for case in NAMED.values())
    shoes = NAMED["sneakers_to_boots"]
    assert shoes.source_prompt.startswith("gray sneakers") and shoes.target_prompt.startswith("red boots")
    assert {case.source.subject.kind in VEHICLES for case in NAMED.values()} == {True, False}


# ---- determinism and files -------------------------------------------------------------------------------------------


def test_a_case_is_always_drawn_alike_and_the_benchmark_is_always_the_same() -> None:
    case = NAMED["sneakers_to_boots"]
    first, facts = truth_of(case, 48)
    for cache in (places._painted, places._cut_out, shape_of):
        cache.cache_clear()
    np.random.seed(5)
    random.seed(5)
    again, same = truth_of(case, 48)
    assert facts == same and first.keys() == again.keys()
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert benchmark.__wrapped__() == benchmark()


def test_the_truth_has_what_it_says() -> None:
    case, size = NAMED["bus_to_suv"], 48
    arrays, facts = truth_of(case, size)
    frames = case.source.frames
    for name in ("source", "target"):
        assert arrays[f"{name}_instances"].shape == (1, frames, size, size)
        assert np.array_equal(arrays[f"{name}_instances"][0], arrays[f"{name}_mask"])
        assert arrays[f"{name}_motion"].shape == (frames - 1, 2, size, size)
        assert np.isfinite(arrays[f"{name}_motion"]).all() and arrays[f"{name}_counted"].any((1, 2)).all()
        assert not (arrays[f"{name}_shadow"] & arrays[f"{name}_mask"]).any() and arrays[f"{name}_shadow"].any()
    assert arrays["target_layer"].shape == (frames, size + 6, size + 12, 4)
    assert arrays["target_yaws"].shape == (frames, 24, size, size)
    assert facts["still_camera"] and len(facts["yaw"]) == frames and min(facts["target_inside"]) > 0.75


def test_a_case_is_drawn_at_its_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(resolver.VARIABLE)
    with resolver.drawing():
        folder = Path(OmegaConf.create({"path": "${drawn:smaller_0}"}).path)
        assert folder == tmp_path / "outputs/drawn/smaller_0" and not folder.exists()
    stamp = (folder / "source.mp4").stat().st_mtime_ns
    assert resolver.drawn("smaller_0") == str(folder) and (folder / "source.mp4").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="choose one of"):
        resolver.drawn("bus_to_moon")
    resolver.keep_folder("elsewhere")
    monkeypatch.chdir("/")
    assert resolver.folder() == tmp_path / "elsewhere"


def test_the_resolver_costs_no_library_until_it_is_used() -> None:
    script = "import sys, tave.roadside.resolver; assert not {'torch', 'numpy', 'PIL', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("damage", ["truth/truth.npz", "source.mp4", "scene.json", "SHA256SUMS"])
def test_a_drawn_case_that_has_changed_is_drawn_again(damage: str, tmp_path: Path) -> None:
    case = cases.find_case("bus_to_dotted_bus")
    place = draw_case(case, tmp_path, 32)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    stamp = (place / "source.mp4").stat().st_mtime_ns
    assert draw_case(case, tmp_path, 32) == place and read_sums(place)
    assert (place / "source.mp4").stat().st_mtime_ns == stamp
    (place / damage).write_bytes(b"")
    draw_case(case, tmp_path, 32)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_a_case_is_drawn_again_in_another_size(tmp_path: Path) -> None:
    case = cases.find_case("bus_to_dotted_bus")
    draw_case(case, tmp_path, 32)
    place = draw_case(case, tmp_path, 48)
    assert read_clip(place / "source.mp4").frames.shape == (8, 3, 48, 48)
    with Image.open(place / "target.png") as picture:
        assert picture.size == (96, 96)


@pytest.mark.parametrize(("group", "name"), [*(("", each) for each in NAMED), *(("study", each) for each in STUDY)])
def test_files_of_named_and_study_clips_have_the_cases_prompts(group: str, name: str) -> None:
    video: Any = OmegaConf.to_container(OmegaConf.load(CONF / "video" / group / f"{name}.yaml").video)
    ((key, edit),) = video["edits"].items()
    case, at = (NAMED | STUDY)[name], f"${{drawn:{name}}}"
    assert (video["name"], video["path"], video["source_prompt"]) == (name, f"{at}/source.mp4", case.source_prompt)
    files = {"target_image": f"{at}/target.png", "truth": f"{at}/truth"}
    assert edit == {"target_prompt": case.target_prompt, **files} and name.endswith(f"_to_{key}")


@pytest.mark.parametrize(("which", "name"), [("full", "turning_3"), ("small", "occluder_0"), ("study", "van_to_bike")])
def test_a_drawn_set_is_read_like_any_other(which: str, name: str, tmp_path: Path) -> None:
    (case,) = read_listing(draw_set(tmp_path, 32, which, only=[name]))
    assert case.name == name and case.truth and set(case.groups) == set(groups_of(cases.find_case(name)))
    assert read_clip(case.path).frames.shape == (8, 3, 32, 32)


def test_sheets_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = [cases.find_case(name) for name in ("turning_0", "other_light_0")]
    monkeypatch.setattr(sheet, "NAMED", {"bus_to_suv": NAMED["bus_to_suv"]})
    monkeypatch.setattr(sheet, "KINDS", ("car", "boot"))
    monkeypatch.setattr(sheet, "benchmark", lambda: some)
    monkeypatch.setattr(sheet, "small_benchmark", lambda: some)
    monkeypatch.setattr(sys, "argv", ["sheet", str(tmp_path / "pictures")])
    sheet.main()
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"named.png", "groups.png", "kinds.png", "pasted.png"} and " ms " in capsys.readouterr().out
    pasted, ideal = (np.asarray(picture) for picture in (sheet.pasted(some[0], 4), sheet.frame_of(some[0].ideal, 4)))
    assert pasted.shape == ideal.shape and not np.array_equal(pasted, ideal)


def test_pictures_and_table_of_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips, of which one lacks a metric."""
    for name in ("bus_to_suv", "car_to_truck"):
        drawn = draw_case(NAMED[name], tmp_path / "drawn", 32)
        edit = tmp_path / "runs" / name / "edits/suv"
        edit.mkdir(parents=True)
        for path in (edit / "edited.mp4", edit / "mask.mp4", edit.parents[1] / "source.mp4"):
            path.write_bytes((drawn / "source.mp4").read_bytes())
        target = drawn / "target.png"
        write_json(edit / "edit.json", {"target_image": str(target), "sha256": file_digest(target)})
        figures = {"ideal_psnr": 12.0, "residue_old": 0.5 if name == "bus_to_suv" else None}
        write_json(edit.parents[1] / "metrics.json", {"edits": {"suv": figures}, "metrics": {}})
    monkeypatch.setattr(sys, "argv", ["edit_sheet", str(tmp_path / "runs"), str(tmp_path / "docs")])
    edit_sheet.main()
    with (
        Image.open(tmp_path / "docs/bus_to_suv.gif") as moving,
        Image.open(tmp_path / "docs/contact_sheet.png") as still,
    ):
        assert getattr(moving, "n_frames", 0) == 8 and still.width > 8 * 32
    table = (tmp_path / "docs/named_clips.md").read_text()
    assert "| **0.500** | 0.500 |  |" in table and "| **12.0** | 12.0 | 12.0 |" in table
