"""Controls: what each of them shows, and that pasting with everything known comes near the ideal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tave.config import WHOLE, OptionError
from tave.controls import _emptied, make, possible, true_region
from tave.files import file_digest, read_json, write_json
from tave.listing import ListedCase, read_listing
from tave.regions import box_of, grown
from tave.roadside.cases import NAMED, SIZE, Case, frames_of, target_image
from tave.roadside.draw import object_layer
from tave.roadside.files import write_case
from tave.roadside.truth import truth_of
from tave.video import read_clip, write_video
from tave.video.frames import from_pixels

NAMES = ("source_unchanged", "frozen_first_frame", "pasted", "pasted_true_pose", "per_frame")
VIDEO = {"frames": None, "start": 0, "stride": 1, "width": None, "height": None, "fit": "crop", "multiple": 8}


def run_of(case: Case, folder: Path) -> tuple[Path, ListedCase]:
    """The run folder of a drawn case, with an edit of the method tave that darkens the source, frame by frame."""
    write_case(case, folder / case.name)
    entry = {"name": case.name, "path": f"{case.name}/source.mp4", "source_prompt": case.source_prompt}
    entry |= {"target_prompt": case.target_prompt, "target_image": f"{case.name}/target.png"}
    write_json(folder / "cases.json", {"cases": [entry | {"truth": f"{case.name}/truth"}]})
    run = folder / "run"
    (run / "edits" / "tave").mkdir(parents=True)
    source = read_clip(folder / case.name / "source.mp4", WHOLE)
    write_video(run / "source.mp4", source.frames, source.fps, lossless=True)
    write_video(run / "edits/tave/edited.mp4", source.frames * torch.linspace(1, 0, 8)[:, None, None, None], source.fps)
    (run / "edits/tave/soft_mask.npz").write_bytes(b"mask")
    write_json(run / "edits/tave/edit.json", {"name": "tave", "target_prompt": case.target_prompt, "key": "abc"})
    write_json(run / "run.json", {"config": {"video": VIDEO}})
    return run, read_listing(folder / "cases.json")[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ListedCase]:
    run, case = run_of(NAMED["bus_to_suv"], tmp_path_factory.mktemp("bus_to_suv"))
    for name in NAMES:
        make(name, run, case, lambda clip: -clip.frames)
    return run, case


def shown(run: Path, name: str) -> Tensor:
    return read_clip(run / "edits" / name / "edited.mp4", WHOLE).frames


def psnr(first: Tensor, second: Tensor, where: Tensor | None = None) -> float:
    error = (first - second).square().mean(1) / 4
    return float(-10 * (error if where is None else error[where]).mean().log10())


def test_every_control_has_the_masks_and_the_request_of_the_method(made: tuple[Path, ListedCase]) -> None:
    run, case = made
    for name in NAMES:
        folder = run / "edits" / name
        record = read_json(folder / "edit.json")
        assert (folder / "soft_mask.npz").read_bytes() == b"mask"
        assert record["control"] and record["name"] == name and record["target_prompt"] == case.target_prompt
        assert "key" not in record  # a control is not that edit
    digest = file_digest(run / "edits/tave/edited.mp4")
    assert read_json(run / "edits/frozen_first_frame/edit.json")["made_from"] == digest


def test_source_frozen_and_per_frame_show_what_they_are_made_of(made: tuple[Path, ListedCase]) -> None:
    run, _ = made
    source, ours = read_clip(run / "source.mp4", WHOLE).frames, shown(run, "tave")
    assert psnr(shown(run, "source_unchanged"), source) > 38
    assert psnr(shown(run, "frozen_first_frame"), ours[:1].expand_as(ours)) > 38
    assert psnr(shown(run, "per_frame"), -source) > 38


def test_pasted_puts_the_photograph_at_the_old_objects_height_and_ground_line(made: tuple[Path, ListedCase]) -> None:
    run, _ = made
    truth, _ = truth_of(NAMED["bus_to_suv"])
    source = read_clip(run / "source.mp4", WHOLE).frames
    empty = _emptied(source, torch.from_numpy(truth["source_mask"]), still=True).frames
    for frame, bare, bus in zip(shown(run, "pasted"), empty, truth["source_mask"], strict=True):
        pasted = ((frame - bare).abs().amax(0) > 0.2).numpy()
        rows, columns = (np.flatnonzero(pasted.any(axis)) for axis in (1, 0))
        bus_rows, bus_columns = (np.flatnonzero(bus.any(axis)) for axis in (1, 0))
        assert abs(rows[0] - bus_rows[0]) <= 2 and abs(rows[-1] - bus_rows[-1]) <= 2
        assert abs(columns[[0, -1]].mean() - bus_columns[[0, -1]].mean()) <= 3


@pytest.mark.parametrize("occluder", [None, "lamp"])
@pytest.mark.parametrize("name", ["van_to_striped_van", "car_to_van"])
def test_a_paste_from_the_same_side_comes_near_the_ideal(name: str, occluder: str | None, tmp_path: Path) -> None:
    """The heading is the clip's, the old object is gone, and what stands in front is still there."""
    case = NAMED[name]
    clip = replace(case.source, occluder=occluder, occluder_x=30)
    side = (180 - clip.heading(4)) % 360  # mirrored, so that the control has to turn the photograph over
    case = replace(case, source=clip, photo=replace(case.photo, yaw=side, hour=clip.hour, sun=(180 - clip.sun) % 360))
    run, listed = run_of(case, tmp_path)
    make("pasted_true_pose", run, listed)
    truth, _ = truth_of(case)
    union = torch.from_numpy(truth["source_mask"] | truth["target_mask"])
    ideal = from_pixels(frames_of(case.ideal))
    assert psnr(shown(run, "pasted_true_pose"), ideal, union) > 15
    assert psnr(shown(run, "pasted_true_pose"), ideal, ~union) > 30


@pytest.mark.parametrize("name", ["bus_to_suv", "car_to_van"])
def test_the_background_behind_the_old_object_is_that_of_the_frame(name: str) -> None:
    """Under a still camera other frames show it; under a moving one they show another part at the same pixel."""
    case = NAMED[name]
    truth, facts = truth_of(case)
    frames, mask = from_pixels(truth["source"]), torch.from_numpy(truth["source_mask"])
    near = torch.from_numpy(grown(truth["source_mask"], 4)) & ~mask & ~torch.from_numpy(truth["source_shadow"])
    error = {still: psnr(_emptied(frames, mask, still).frames, from_pixels(truth["background"]), mask | near)
             for still in (True, False)}  # fmt: skip
    assert error[facts["still_camera"]] > error[not facts["still_camera"]]


def test_a_photograph_from_another_side_is_pasted_by_its_true_silhouette(tmp_path: Path) -> None:
    """What surrounds the object in the photograph doesn't matter, nor does the target's shadow in the clip."""
    case = NAMED["bus_to_suv"]
    run, listed = run_of(case, tmp_path)
    truth, _ = truth_of(case)
    make("pasted_true_pose", run, listed)
    before, source = shown(run, "pasted_true_pose"), read_clip(run / "source.mp4", WHOLE).frames
    for i, (frame, clip) in enumerate(zip(before, source, strict=True)):
        changed = ((frame - clip).abs().amax(0) > 0.25).numpy() & ~grown(truth["source_mask"][i : i + 1], 3)[0]
        box = box_of(object_layer(case.ideal, i, SIZE)[..., 3] > 0.5)
        assert not changed[: box.top - 1].any() and not changed[box.bottom + 1 :].any()
    photo = np.array(target_image(case))
    photo[truth["photo_mask"] == 0] = (250, 0, 250)
    Image.fromarray(photo).save(str(listed.target_image))
    make("pasted_true_pose", run, listed)
    assert psnr(shown(run, "pasted_true_pose"), before) > 38


@pytest.mark.parametrize("name", ["car_to_truck", "sneakers_to_boots", "car_to_van", "bus_to_dotted_bus"])
def test_the_boxes_of_a_layer_with_a_shadow_are_the_objects(name: str) -> None:
    case = NAMED[name]
    truth, _ = truth_of(case, 48)
    if case.alpha:
        assert np.array_equal(truth["photo_mask"], np.asarray(target_image(case, 96))[..., 3])
    for i, layer in enumerate(truth["target_layer"]):
        alone = object_layer(case.ideal, i, 48, margin=(6, 3))[..., 3] > 0.5
        assert np.abs(np.subtract(box_of(layer[..., 3] > 127), box_of(alone))).max() <= 1


def test_a_control_that_lacks_its_input_is_refused(made: tuple[Path, ListedCase]) -> None:
    run, case = made
    bare = replace(case, truth=None)
    assert [name for name in NAMES if not possible(name, bare)] == ["pasted", "pasted_true_pose"]
    assert all(possible(name, case) for name in NAMES)
    with pytest.raises(OptionError, match="known answer"):
        make("pasted", run, bare)


def test_an_oracle_is_given_old_and_new_object(made: tuple[Path, ListedCase]) -> None:
    run, case = made
    truth, _ = truth_of(NAMED["bus_to_suv"])
    region = read_clip(true_region(run, case, WHOLE), WHOLE).frames.mean(1) > 0
    assert np.array_equal(region.numpy(), truth["source_mask"] | truth["target_mask"])
