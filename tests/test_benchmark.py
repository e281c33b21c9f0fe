"""The benchmark: a list that never changes, held out whole, and a run of it that loses nothing and repeats nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

import eval.score
import tave.benchmark
import tave.controls
import tave.run
import tave.writer
from tave.benchmark import BenchmarkOptions, benchmark
from tave.cache import digest
from tave.config import CONF, typed
from tave.controls import CONTROLS
from tave.files import file_digest
from tave.listing import read_listing
from tave.options import OptionError
from tave.roadside.benchmark import EACH, GROUPS, cases, draw_set, groups_of, small
from tave.roadside.cases import NAMED, truth_of, write_case
from tave.roadside.scene import FIRST_HELD_OUT_SEED, NAMED_COMBINATIONS, held_out
from tave.rows import Method, called_as
from tave.story import quoted
from tave.video import ReadOptions, read_clip, write_image, write_video

WHOLE = ReadOptions(frames=None, multiple=1)
# Five frames of 32 pixels through the untrained backbone: every path of the real thing in a fraction of a second.
TINY = ["backbone=tiny", "tuning.steps=1", "inversion.steps=2", "inversion.refine=0", "metrics.judge=null"]
CASE = "larger_0"


def listed(key: str, *values: str) -> str:
    """An override that gives a list of overrides: each is quoted, else its own `=` would end the value."""
    return f"{key}=[{','.join(quoted(value) for value in values)}]"


# ---- the list --------------------------------------------------------------------------------------------------------


def test_the_list_is_the_one_that_all_figures_were_measured_on() -> None:
    """Changed on purpose? Then every published figure is of another benchmark: say so in CHANGELOG."""
    assert len(cases()) == len(GROUPS) * EACH >= 40
    assert digest([digest(case) for case in cases()]) == "564f179c1768"


def test_every_case_is_held_out_and_none_is_a_named_clip() -> None:
    for case in cases():
        for vehicle in (case.source.vehicle, case.target):
            assert held_out(vehicle, case.source.place)
            assert (vehicle.kind, vehicle.color, vehicle.pattern, case.source.place) not in NAMED_COMBINATIONS
        assert case.source.seed >= FIRST_HELD_OUT_SEED
        assert case.image_place != case.source.place
    seeds = [case.source.seed for case in (*cases(), *NAMED.values())]
    assert len(set(seeds)) == len(seeds)
    assert len({(case.source.vehicle, case.target, case.source.place) for case in cases()}) == len(cases())


def test_every_group_is_there_and_holds_what_it_says() -> None:
    assert {group for case in cases() for group in groups_of(case)} == set(GROUPS)
    assert [name.rpartition("_")[0] for name in (case.name for case in small())] == list(GROUPS)
    for case in cases():
        assert case.name.rpartition("_")[0] in groups_of(case)
        if "pattern_only" in groups_of(case):
            assert case.source_prompt == case.target_prompt
            assert case.source.vehicle.pattern != case.target.pattern
        assert case.source.frames == (16 if "long_clip" in groups_of(case) else 8)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_target_stays_mostly_inside_and_the_occluder_passes_before_it(case: Any) -> None:
    arrays, described = truth_of(case, 32)
    assert min(described["target_inside"]) >= 0.7  # type: ignore[call-overload]
    hidden = (arrays["occluder"][..., 3] > 127) & (unhidden(case) > 0)
    assert hidden.any() == ("occluder" in groups_of(case))


def unhidden(case: Any) -> np.ndarray:
    """The target's silhouette as if nothing stood before it, `f H W`."""
    bare = replace(case, source=replace(case.source, occluder=None))
    return truth_of(bare, 32)[0]["target_mask"]


def test_a_drawn_set_is_drawn_once_and_only_where_it_is_asked_for(tmp_path: Path) -> None:
    listing = draw_set(tmp_path, 32, "small", [CASE])
    (entry,) = json.loads(listing.read_text())["cases"]
    assert entry["name"] == CASE and {p.name for p in tmp_path.iterdir()} == {CASE, "cases.json"}
    before = (tmp_path / CASE / "source.mp4").stat().st_mtime_ns
    draw_set(tmp_path, 32, "full", [CASE])
    assert (tmp_path / CASE / "source.mp4").stat().st_mtime_ns == before
    draw_set(tmp_path, 48, "full", [CASE])
    assert read_clip(tmp_path / CASE / "source.mp4", WHOLE).frames.shape[-1] == 48


# ---- running it ------------------------------------------------------------------------------------------------------


def asked(folder: Path, *overrides: str) -> BenchmarkOptions:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = ["set=full", f"only=[{CASE}]", f"folder={folder}", "set.size=32", listed("overrides", *TINY)]
        return typed(compose("benchmark", [*own, *overrides]))


def external(folder: Path, home: Path, *overrides: str) -> BenchmarkOptions:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = ["set=folder", f"set.folder={home}", f"folder={folder}", listed("overrides", *TINY)]
        return typed(compose("benchmark", [*own, *overrides]))


@pytest.fixture(scope="module", autouse=True)
def lossless() -> Iterator[None]:
    """Edits are kept to the bit: the codec's lossy files of pictures as small as these differ from one writing to the next."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (tave.writer, tave.controls):
            patch.setattr(module, "write_video", partial(write_video, lossless=True))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    assert benchmark(asked(folder), show=False) == []
    return folder


def edit_of(folder: Path, row: str) -> Path:
    return folder / CASE / "edits" / row


def test_one_tuned_run_holds_every_row_labelled_and_measured(made: Path) -> None:
    rows = asked(made).rows
    metrics = json.loads((made / CASE / "metrics.json").read_text())
    assert set(metrics["edits"]) == set(rows) == {path.name for path in (made / CASE / "edits").iterdir()}
    for row in rows:
        names = {path.name for path in edit_of(made, row).iterdir()}
        assert {"edited.mp4", "mask.mp4", "soft_mask.npz", "edit.json", "truth"} <= names
        told = json.loads((edit_of(made, row) / "edit.json").read_text())
        assert told["benchmark"] == {"case": CASE, "group": ["larger", "silhouette"], "method": row, "seed": 33}
        assert metrics["edits"][row]["ideal_psnr"] is not None
    assert not list(made.rglob("failed.json"))


def test_rows_do_what_they_are_called(made: Path) -> None:
    source = read_clip(made / CASE / "source.mp4", WHOLE).frames
    edited = {row: read_clip(edit_of(made, row) / "edited.mp4", WHOLE).frames for row in asked(made).rows}
    masks = {row: np.load(edit_of(made, row) / "soft_mask.npz")["mask"] for row in edited}
    told = {row: json.loads((edit_of(made, row) / "edit.json").read_text()) for row in edited}
    assert (edited["source_unchanged"] - source).abs().mean() < 0.02
    assert all((one - other).abs().mean() < 0.02 for one, other in pairwise(edited["frozen_first_frame"]))
    assert told["text_only"]["reference"] == told["text_only_oracle_mask"]["reference"] == "none"
    assert masks["no_mask"].all()
    with np.load(made / "cases" / CASE / "truth" / "truth.npz") as truth:
        union = truth["source_mask"] | truth["target_mask"]
    frames, h, w = masks["tave"].shape
    cells = union.reshape(frames, h, 32 // h, w, 32 // w).any((2, 4))
    assert np.array_equal(masks["oracle_mask"], cells)
    assert np.array_equal(masks["oracle_mask"], masks["text_only_oracle_mask"])
    assert told["patent"]["options"]["mask"]["branches"] == "separate" and told["patent"]["reference"] == "as_is"
    assert not told["no_correction"]["options"]["correction"]["enabled"]
    for row, other in (("oracle_mask", "tave"), ("per_frame", "tave"), ("target_pasted", "source_unchanged")):
        assert not np.array_equal(edited[row], edited[other])


def test_a_logger_tells_which_row_an_edit_is() -> None:
    told = {"name": "larger_0", "tags": ["larger_0", "roadside", "tave"], "mode": "offline"}
    assert called_as("patent", told) == told | {"name": "larger_0 patent", "tags": ["larger_0", "roadside", "patent"]}
    assert called_as("patent", {"_target_": "csv"}) == {"_target_": "csv"}


def test_frames_edited_alone_are_no_runs_of_a_logger(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded loggers would open a run for each frame in a folder that goes."""
    seen: list[Any] = []
    real = tave.run.Run.__init__

    def spied(self: Any, options: Any, *rest: Any) -> None:
        seen.append(options.logger)
        real(self, options, *rest)

    monkeypatch.setattr(tave.run.Run, "__init__", spied)
    home = Path(shutil.copytree(made / CASE, tmp_path / CASE))
    record = json.loads((home / "run.json").read_text())
    assert record["config"]["logger"]  # there is one to leave out
    shutil.rmtree(home / "edits" / "per_frame")
    case = next(case for case in read_listing(draw_set(made / "cases", 32, only=[CASE])) if case.name == CASE)
    tave.controls.make("per_frame", home, case)
    assert seen and not any(seen)


def test_nothing_that_stands_is_made_again(made: Path) -> None:
    before = ages(made / CASE)
    assert benchmark(asked(made), show=False) == []
    assert ages(made / CASE) == before


def test_it_goes_on_where_it_stopped(made: Path, tmp_path: Path) -> None:
    """As if killed: between the edit and its label, between the label and the figures, and before a control."""
    whole = tmp_path / "benchmark"
    shutil.copytree(made, whole)
    path = edit_of(whole, "patent") / "edit.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "benchmark"}))
    metrics = json.loads((whole / CASE / "metrics.json").read_text())
    before = metrics["edits"].pop("text_only")
    (whole / CASE / "metrics.json").write_text(json.dumps(metrics))
    shutil.rmtree(edit_of(whole, "target_pasted"))
    tuned = (whole / CASE / "tuned.safetensors").stat().st_mtime_ns
    assert benchmark(asked(whole), show=False) == []
    assert "benchmark" in json.loads(path.read_text())
    assert json.loads((whole / CASE / "metrics.json").read_text())["edits"]["text_only"] == before
    again, first = (edit_of(place, "target_pasted") / "edited.mp4" for place in (whole, made))
    assert again.read_bytes() == first.read_bytes()
    assert (whole / CASE / "tuned.safetensors").stat().st_mtime_ns == tuned


def test_other_choices_in_the_same_folder_are_refused_by_name(made: Path, tmp_path: Path) -> None:
    whole = tmp_path / "benchmark"
    shutil.copytree(made, whole)
    (failed,) = benchmark(asked(whole, listed("overrides", *TINY, "tuning.lr=0.5")), show=False)
    assert failed["method"] == "tuning" and "tuning.lr" in failed["error"]
    (failed,) = benchmark(
        asked(whole, "rows=[tave,patent]", listed("methods.patent.overrides", "mask.dilate=3")), show=False
    )
    assert failed["method"] == "patent" and "mask.dilate=1, not 3" in failed["error"]
    path = edit_of(whole, "tave") / "edit.json"
    told = json.loads(path.read_text())
    del told["options"]["correction"]["agreement"]  # as an older version left it, that hadn't got the option
    path.write_text(json.dumps(told))
    (failed,) = benchmark(asked(whole, "rows=[tave]"), show=False)
    assert failed["method"] == "tave" and "correction.agreement=None, not 1" in failed["error"]


def ages(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def moved(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The benchmark and its set, both in another place: the first is `made` of the second, which may be changed."""
    shutil.copytree(made, tmp_path / "benchmark")
    shutil.copytree(made / "cases", tmp_path / "set")
    return tmp_path / "benchmark", tmp_path / "set"


def listing_with(home: Path, **changes: str) -> Path:
    listing = json.loads((home / "cases.json").read_text())
    listing["cases"][0] |= changes
    (home / "cases.json").write_text(json.dumps(listing))
    return home


def test_a_benchmark_in_another_place_goes_on_and_so_does_an_older_one(moved: tuple[Path, Path]) -> None:
    folder, home = moved
    metrics = folder / CASE / "metrics.json"
    metrics.write_text(json.dumps({k: v for k, v in json.loads(metrics.read_text()).items() if k != "measured"}))
    for path in (folder / CASE / "edits").glob("*/edit.json"):
        told = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in told.items() if k not in ("matte_sha256", "made_from")}))
    before = ages(folder / CASE)
    assert benchmark(external(folder, home), show=False) == []
    assert ages(folder / CASE) == before


@pytest.mark.parametrize(
    ("changes", "method", "named"),
    [
        ({"source_prompt": "a bicycle"}, "tuning", "video.source_prompt="),
        ({"path": "other.mp4"}, "tuning", "another clip"),
        ({"target_prompt": "a bicycle"}, "tave", "target_prompt="),
        ({"target_image": "other.png"}, "tave", "sha256="),
        ({"matte": "other.png"}, "source_unchanged", "matte_sha256=None"),
    ],
)
def test_a_case_that_has_become_another_one_is_refused_by_name(
    moved: tuple[Path, Path], changes: dict[str, str], method: str, named: str
) -> None:
    folder, home = moved
    frames = read_clip(home / CASE / "source.mp4", WHOLE).frames
    write_video(home / "other.mp4", -frames, 8.0)
    write_image(home / "other.png", frames[0])
    before = ages(folder / CASE)
    failed = benchmark(external(folder, listing_with(home, **changes), "rows=[tave,source_unchanged]"), show=False)
    assert {entry["method"] for entry in failed} == ({"tuning"} if method == "tuning" else {"tave", "source_unchanged"})
    (error,) = (entry["error"] for entry in failed if entry["method"] == method)
    assert named in error and str(folder / CASE) in error
    assert ages(folder / CASE).items() >= before.items()


@pytest.mark.parametrize("override", ["video.stride=2", "video.frames=3", "video.width=24"])
def test_other_frames_of_the_clip_are_refused_by_name(made: Path, tmp_path: Path, override: str) -> None:
    shutil.copytree(made, tmp_path / "benchmark")
    listing_with(tmp_path / "benchmark" / "cases", frames=None)  # type: ignore[arg-type]
    given = listed("overrides", *TINY, override)
    (failed,) = benchmark(external(tmp_path / "benchmark", tmp_path / "benchmark/cases", given), show=False)
    assert failed["method"] == "tuning" and override.partition("=")[0] in failed["error"]


class Eye:
    """An encoder that sees the mean colour."""

    id, size, fit = "eye@0", 8, "stretch"

    def images(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(pictures.mean((2, 3)) + 2, dim=-1)

    def texts(self, captions: list[str]) -> torch.Tensor:
        return torch.ones(len(captions), 3) / 3**0.5


def test_another_encoder_measures_what_stands(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(eval.score, "load_encoder", lambda *_: Eye())
    folder = tmp_path / "benchmark"
    shutil.copytree(made, folder)
    edits = {path: age for path, age in ages(folder / CASE).items() if path.name != "metrics.json"}
    assert benchmark(asked(folder, "clip=eye", "rows=[tave,patent]"), show=False) == []
    told = json.loads((folder / CASE / "metrics.json").read_text())
    assert {row for row, figures in told["edits"].items() if "clip_text" in figures} == {"tave", "patent"}
    assert told["metrics"]["clip_text"]["id"].startswith("clip_text/eye@0/")
    before = ages(folder / CASE)
    assert before.items() >= edits.items()
    assert benchmark(asked(folder, "clip=eye", "rows=[tave,patent]"), show=False) == []
    assert ages(folder / CASE) == before and not caplog.messages
    monkeypatch.setattr(Eye, "id", "other@0")
    assert benchmark(asked(folder, "clip=other", "rows=[tave]"), show=False) == []
    (line,) = caplog.messages
    assert "patent.clip_text" in line and "tave." not in line
    caplog.clear()
    assert benchmark(asked(folder, "clip=eye", "rows=[tave,patent]"), show=False) == []
    assert not caplog.messages  # what the first row took out, the second has measured anew


def test_a_warning_of_the_evaluation_is_told_once(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(made, tmp_path / "benchmark")
    path = tmp_path / "benchmark" / CASE / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"edits": {}}))
    for row in asked(made).rows:
        shutil.rmtree(edit_of(tmp_path / "benchmark", row) / "truth")  # as on footage
    judged = listed("overrides", *TINY[:-1])
    assert benchmark(asked(tmp_path / "benchmark", judged, "rows=[tave,text_only]"), show=False) == []
    assert sum("drawn vehicles only" in line for line in caplog.messages) == 1
    assert not any("not measured" in line for line in caplog.messages)


def test_an_edit_made_anew_has_none_of_the_old_ones_figures(made: Path, tmp_path: Path) -> None:
    """Neither one whose stamp was written, nor, as in older folders, one without."""
    folder = tmp_path / "benchmark"
    shutil.copytree(made, folder)
    path = folder / CASE / "metrics.json"
    told = json.loads(path.read_text())
    expected = {row: dict(told["edits"][row]) for row in ("tave", "text_only")}
    for row in expected:
        told["edits"][row] = {"ideal_psnr": -1.0, "of_the_old_one": 1.0}
        shutil.rmtree(edit_of(folder, row))
    del told["measured"]["text_only"]
    path.write_text(json.dumps(told))
    assert benchmark(asked(folder, "rows=[tave,text_only]"), show=False) == []
    assert {row: json.loads(path.read_text())["edits"][row] for row in expected} == expected


def test_a_control_is_remade_with_the_edit_it_comes_from(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "benchmark"
    shutil.copytree(made, folder)
    shutil.rmtree(edit_of(folder, "tave"))
    shutil.rmtree(edit_of(folder, "per_frame"))
    wider = ["rows=[tave,source_unchanged,frozen_first_frame]", listed("methods.tave.overrides", "mask.dilate=4")]
    assert benchmark(asked(folder, *wider), show=False) == []
    masks = {row: (edit_of(folder, row) / "soft_mask.npz").read_bytes() for row in ("tave", "source_unchanged")}
    assert masks["tave"] == masks["source_unchanged"] != (edit_of(made, "tave") / "soft_mask.npz").read_bytes()
    for row in ("source_unchanged", "frozen_first_frame"):
        told = json.loads((edit_of(folder, row) / "edit.json").read_text())
        assert told["options"]["mask"]["dilate"] == 4
        assert json.loads((folder / CASE / "metrics.json").read_text())["measured"][row]["edited"] == file_digest(
            edit_of(folder, row) / "edited.mp4"
        )


def test_the_truth_has_no_part_in_any_row_but_the_oracles(made: Path, tmp_path: Path) -> None:
    blind, cases_ = tmp_path / "blind", tmp_path / "set"
    shutil.copytree(made / "cases", cases_)
    shutil.rmtree(cases_ / CASE / "truth")
    listing = json.loads((cases_ / "cases.json").read_text())
    listing["cases"][0].pop("truth")
    (cases_ / "cases.json").write_text(json.dumps(listing))
    assert benchmark(external(blind, cases_), show=False) == []
    rows = {path.name for path in (blind / CASE / "edits").iterdir()}
    assert rows == set(asked(made).rows) - {"oracle_mask", "text_only_oracle_mask"}
    for row in rows:
        for name in ("edited.mp4", "soft_mask.npz"):
            assert (edit_of(blind, row) / name).read_bytes() == (edit_of(made, row) / name).read_bytes()


def test_what_fails_is_listed_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setitem(CONTROLS, "target_pasted", broken)
    only = ["only=[larger_0,smaller_0]", "rows=[tave,target_pasted,source_unchanged]", "seeds=[33]"]
    draw_set(tmp_path / "cases", 32, "small", ["larger_0", "smaller_0"])
    (tmp_path / "cases" / "smaller_0" / "source.mp4").write_bytes(b"no video")
    failed = benchmark(asked(tmp_path, *only), show=False)
    told = [json.loads((tmp_path / case / "failed.json").read_text())["failed"] for case in ("larger_0", "smaller_0")]
    assert failed == told[0] + told[1] and all(entry["seed"] == 33 for entry in failed)
    assert [(entry["case"], entry["method"]) for entry in failed] == [
        ("larger_0", "target_pasted"),
        ("smaller_0", "tuning"),
    ]
    assert failed[0]["error"] == "RuntimeError: out of memory"
    assert {path.name for path in (tmp_path / "larger_0" / "edits").iterdir()} == {"tave", "source_unchanged"}
    # Another part of it leaves both lists, and what is mended leaves its own.
    (tmp_path / "failed.json").write_text(
        json.dumps({"failed": [failed[0], {**failed[0], "case": "longer_0"}]})
    )  # as once
    assert benchmark(asked(tmp_path, "only=[larger_0]", "rows=[tave]"), show=False) == []
    again = [json.loads((tmp_path / case / "failed.json").read_text())["failed"] for case in ("larger_0", "smaller_0")]
    assert again == told
    assert [entry["case"] for entry in json.loads((tmp_path / "failed.json").read_text())["failed"]] == ["longer_0"]
    monkeypatch.setitem(CONTROLS, "target_pasted", CONTROLS["source_unchanged"])
    assert benchmark(asked(tmp_path, "only=[larger_0]", "rows=[tave,target_pasted]"), show=False) == []
    assert not (tmp_path / "larger_0" / "failed.json").exists() and (tmp_path / "smaller_0" / "failed.json").exists()


@pytest.mark.slow
def test_cases_side_by_side_are_made_as_one_after_another(tmp_path: Path) -> None:
    """To the bit, with a case that fails between them."""
    only = ["only=[larger_0,smaller_0,same_size_0]", "rows=[tave,source_unchanged]"]
    told = []
    for folder, workers in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        draw_set(folder / "cases", 32, "small", ["larger_0", "smaller_0", "same_size_0"])
        (folder / "cases" / "smaller_0" / "source.mp4").write_bytes(b"no video")
        told.append(benchmark(asked(folder, *only, f"workers={workers}"), show=False))
    assert [(entry["case"], entry["method"]) for entry in told[1]] == [("smaller_0", "tuning")]
    assert [
        entry | {"error": entry["error"].replace(str(tmp_path / "one"), str(tmp_path / "two"))} for entry in told[0]
    ] == told[1]
    for case in ("larger_0", "same_size_0"):
        for file in ("tuned.safetensors", "edits/tave/soft_mask.npz", "edits/source_unchanged/soft_mask.npz"):
            one, two = (tmp_path / place / case / file for place in ("one", "two"))
            assert one.read_bytes() == two.read_bytes()
        assert set(json.loads((tmp_path / "two" / case / "metrics.json").read_text())["edits"]) == {
            "tave",
            "source_unchanged",
        }


def test_seeds_are_runs_of_their_own(made: Path, tmp_path: Path) -> None:
    whole = tmp_path / "benchmark"
    shutil.copytree(made, whole)
    assert benchmark(asked(whole, "seeds=[33,34]", "rows=[tave]"), show=False) == []
    other = whole / f"{CASE}-seed34"
    assert json.loads((other / "edits/tave/edit.json").read_text())["benchmark"]["seed"] == 34
    assert json.loads((other / "run.json").read_text())["seed"] == 34
    assert json.loads((whole / CASE / "run.json").read_text())["seed"] == 33


def test_a_row_of_ones_own_is_defined_on_the_command_line(tmp_path: Path) -> None:
    chosen = asked(tmp_path, '+methods.wide={overrides: ["mask.dilate=2"]}', "rows=[tave,wide]").chosen()
    assert chosen == {"tave": Method(), "wide": Method(overrides=["mask.dilate=2"])}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("rows=[best]", "best"),
        ("methods.patent.experiment=nobodys", "nobodys"),
        ("+methods.wide={dilate: 2}", "wide.*dilate"),
        (listed("methods.tave.overrides", "mask.treshold=otsu"), "treshold"),
        (listed("methods.tave.overrides", "tuning.steps=3"), "tuning"),
        ("only=[nobody]", "nobody"),
        ("workers=0", "workers=0"),
    ],
)
def test_a_wrong_row_or_case_fails_by_name_before_anything_is_made(override: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=named):
        benchmark(asked(tmp_path, override), show=False)
    assert not (tmp_path / CASE).exists()


def test_a_control_without_the_edit_it_is_made_from_says_what_to_ask_for(tmp_path: Path) -> None:
    (failed,) = benchmark(asked(tmp_path, "rows=[frozen_first_frame]"), show=False)
    assert "tave" in failed["error"]


def test_who_stops_it_is_told_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(tave.benchmark, "benchmark", stopped)
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(SystemExit) as ended:
        tave.benchmark._door(compose("benchmark", ["set=small"]))
    assert ended.value.code == 130 and "goes on" in capsys.readouterr().err


def test_the_door_ends_in_one_line_and_exit_code_1(made: Path, tmp_path: Path) -> None:
    write_case(NAMED["bus_to_suv"], tmp_path / "bus", 32)
    entry = {"name": "bus", "path": "bus/source.mp4", "source_prompt": "a bus", "target_image": "bus/target.png"}
    (tmp_path / "cases.json").write_text(json.dumps([entry | {"target_prompt": "a car", "frames": 99}]))
    place = [f"set.folder={tmp_path}", f"folder={tmp_path / 'out'}", listed("overrides", *TINY)]
    command = [sys.executable, "-m", "tave.benchmark", "set=folder", *place, "rows=[tave]"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert ended.returncode == 1
    assert "bus/tuning" in ended.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert "99" in json.loads((tmp_path / "out" / "bus" / "failed.json").read_text())["failed"][0]["error"]
