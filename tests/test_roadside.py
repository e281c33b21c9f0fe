"""The drawn world: what is held out, what captions name, that the known answers are true, and drawing on first use."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from tave.config import CONF
from tave.files import file_digest, write_json
from tave.listing import read_listing
from tave.record import read_sums
from tave.roadside import cases, draw, resolver, scene, sheet
from tave.roadside.cases import GROUPS, NAMED, STUDY, Case, benchmark, draw_case, groups_of
from tave.roadside.scene import FIRST_HELD_OUT_SEED, NAMED_COMBINATIONS, Vehicle, caption, held_out, sample_scene
from tave.video import read_clip

CLIPS = Path(cases.__file__).parent / "clips"
EVERY = [*NAMED.values(), *STUDY.values(), *benchmark()]


def combinations(case: Case) -> set[tuple[str, str, str, str]]:
    return {(v.kind, v.color, v.pattern, case.source.place) for v in (case.source.vehicle, case.target)}


def test_all_cases_are_held_out_and_no_two_lists_share_a_combination_or_a_skyline() -> None:
    for case in EVERY:
        assert all(held_out(v, case.source.place) for v in (case.source.vehicle, case.target))
        assert case.source.seed >= FIRST_HELD_OUT_SEED and case.image_place != case.source.place
    named, study, listed = (
        set().union(*map(combinations, each)) for each in (NAMED.values(), STUDY.values(), benchmark())
    )
    assert named == NAMED_COMBINATIONS
    assert not study & (named | listed) and not named & listed
    assert len({case.source.seed for case in EVERY}) == len({case.name for case in EVERY}) == len(EVERY)


@pytest.mark.parametrize("unseen", [False, True])
def test_training_never_uses_what_is_held_out_and_the_exam_nothing_else(unseen: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        drawn = sample_scene(rng, unseen=unseen)
        assert held_out(drawn.vehicle, drawn.place) == (drawn.seed >= FIRST_HELD_OUT_SEED) == unseen


def test_hold_out_leaves_every_value_to_learn_from() -> None:
    vehicles = [Vehicle(k, c, p) for k in scene.VEHICLES for c in scene.COLORS for p in scene.PATTERNS]
    every = [(vehicle, place) for vehicle in vehicles for place in scene.PLACES]
    kept = [(v, place) for v, place in every if not held_out(v, place)]
    assert 0.8 < len(kept) / len(every) < 0.95
    assert {(v.kind, v.color) for v, _ in kept} == {(v.kind, v.color) for v, _ in every}
    assert {(v.kind, v.pattern, place) for v, place in kept} == {(v.kind, v.pattern, place) for v, place in every}


def test_short_captions_and_prompts_do_not_name_the_pattern() -> None:
    dotted = Vehicle("bus", "blue", "dotted", "yellow")
    assert caption(dotted) == caption(replace(dotted, pattern="plain")) == "a blue bus"
    assert caption(dotted, -1, "beach") == "a blue bus driving left on a beach road"
    assert caption(dotted, pattern=True) == "a blue and yellow dotted bus"
    assert caption(Vehicle("suv", "orange")) == "an orange suv"
    assert not any(set(scene.PATTERNS) & set(case.target_prompt.split()) for case in EVERY)


def test_every_group_of_the_benchmark_has_its_cases() -> None:
    for group, first in zip(GROUPS, benchmark()[:: cases.EACH], strict=True):
        assert group in groups_of(first) and sum(group in groups_of(case) for case in benchmark()) >= cases.EACH


def test_layers_add_up_to_the_frame() -> None:
    drive = replace(NAMED["bus_to_suv"].source, occluder="lamp", occluder_x=30.0)
    layers = draw.over(draw.vehicle_layer(drive, 2, 64), draw.background(drive, 2, 64))
    assert np.array_equal(draw.draw(drive, 2, 64), draw.over(draw.occluder_layer(drive, 2, 64), layers))
    assert (draw.silhouette(drive, 2, 64) < draw.vehicle_layer(drive, 2, 64)[..., 3]).any()


@pytest.mark.parametrize("name", ["suv_to_bus", "car_to_truck"])
def test_the_ideal_stands_where_the_source_stood_and_changes_nothing_else(name: str) -> None:
    arrays, _ = cases.truth_of(NAMED[name])
    outside = ~(arrays["source_mask"] | arrays["target_mask"])
    assert ((arrays["source"] != arrays["ideal"]).any(-1) & outside).mean() < 0.02  # the silhouettes' soft edges
    for old, new in zip(arrays["source_mask"], arrays["target_mask"], strict=True):
        feet = [np.flatnonzero(mask.any(1))[-1] for mask in (old, new)]
        middles = [np.flatnonzero(mask.any(0))[[0, -1]].mean() for mask in (old, new)]
        assert abs(feet[0] - feet[1]) <= 1 and abs(middles[0] - middles[1]) <= 1


@pytest.mark.parametrize("name", list(NAMED))
def test_shipped_clips_are_those_that_the_scenes_draw(name: str) -> None:
    arrays, described = cases.truth_of(NAMED[name])
    with np.load(CLIPS / name / "truth/truth.npz") as stored:
        assert set(stored) == set(arrays) and all(np.array_equal(stored[key], arrays[key]) for key in arrays)
    assert json.loads((CLIPS / name / "truth/truth.json").read_text()) == described
    drawn = arrays["source"].transpose(0, 3, 1, 2) / 127.5 - 1
    error = np.mean((read_clip(CLIPS / name / "source.mp4").frames.numpy() - drawn) ** 2) / 4
    assert -10 * np.log10(error) > 38  # decoded like any other clip, yet close to what was drawn


def test_a_case_is_drawn_on_first_use_and_not_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(OmegaConf.create({"path": "${drawn:smaller_0}"}).path)
    assert folder == tmp_path / "outputs/drawn/smaller_0"
    stamp = (folder / "source.mp4").stat().st_mtime_ns
    assert resolver.drawn("smaller_0") == str(folder) and (folder / "source.mp4").stat().st_mtime_ns == stamp
    write_json(folder / "scene.json", {"size": 64})  # of an older scene
    resolver.drawn("smaller_0")
    assert (folder / "source.mp4").stat().st_mtime_ns != stamp and [p.name for p in folder.parent.iterdir()] == [
        "smaller_0"
    ]
    with pytest.raises(ValueError, match="choose one of"):
        resolver.drawn("bus_to_moon")


def test_the_resolver_costs_no_library_until_it_is_used() -> None:
    script = "import sys, tave.roadside.resolver; assert not {'torch', 'numpy', 'PIL', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", list(STUDY))
def test_files_of_the_study_clips_have_the_cases_prompts(name: str) -> None:
    video: Any = OmegaConf.to_container(OmegaConf.load(CONF / "video/study" / f"{name}.yaml").video)
    (edit,) = video["edits"].values()
    at = f"${{drawn:{name}}}"
    assert (video["name"], video["path"], video["source_prompt"]) == (
        name,
        f"{at}/source.mp4",
        STUDY[name].source_prompt,
    )
    assert edit["target_image"] == f"{at}/target.png" and edit["truth"] == f"{at}/truth"
    assert edit["target_prompt"] == STUDY[name].target_prompt


def test_a_drawn_set_is_read_like_any_other(tmp_path: Path) -> None:
    (case,) = read_listing(cases.draw_set(tmp_path, 32, "small", only=["occluder_0"]))
    assert case.name == "occluder_0" and "occluder" in case.groups and case.truth
    assert read_clip(case.path).frames.shape == (8, 3, 32, 32)


def test_documentation_pictures_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips, of which one lacks a metric."""
    for name in ("bus_to_suv", "car_to_truck"):
        edit = tmp_path / "runs" / name / "edits/suv"
        edit.mkdir(parents=True)
        for path in (edit / "edited.mp4", edit / "mask.mp4", edit.parents[1] / "source.mp4"):
            path.write_bytes((CLIPS / name / "source.mp4").read_bytes())
        target = CLIPS / name / "target.png"
        write_json(edit / "edit.json", {"target_image": str(target), "sha256": file_digest(target)})
        figures = {"ideal_psnr": 12.0, "residue": 0.5 if name == "bus_to_suv" else None}
        write_json(edit.parents[1] / "metrics.json", {"edits": {"suv": figures}, "metrics": {}})
    monkeypatch.setattr(sys, "argv", ["sheet", str(tmp_path / "runs"), str(tmp_path / "docs")])
    sheet.main()
    with (
        Image.open(tmp_path / "docs/bus_to_suv.gif") as moving,
        Image.open(tmp_path / "docs/contact_sheet.png") as still,
    ):
        assert getattr(moving, "n_frames", 0) == 8 and still.width > 8 * 96
    table = (tmp_path / "docs/named_clips.md").read_text()
    assert "| **0.500** | 0.500 |  |" in table and "| **12.0** | 12.0 | 12.0 |" in table


@pytest.mark.parametrize("damage", ["truth", "clip", "record", "digests"])
def test_a_drawn_clip_that_has_changed_is_drawn_again(damage: str, tmp_path: Path) -> None:
    place = draw_case(NAMED["bus_to_suv"], tmp_path, 32)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert draw_case(NAMED["bus_to_suv"], tmp_path, 32) == place and read_sums(place)
    files = {"truth": "truth/truth.npz", "clip": "source.mp4", "record": "scene.json", "digests": "SHA256SUMS"}
    (place / files[damage]).write_bytes(b"")
    draw_case(NAMED["bus_to_suv"], tmp_path, 32)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
