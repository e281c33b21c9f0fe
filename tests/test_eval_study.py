"""A study: tables and text from the run folders of a sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from eval import EvalError
from eval.study import StudyOptions, read_sweep, study

pytest.importorskip("matplotlib")


def written(folder: Path, case: str, seed: int, guidance: float, figures: dict[str, Any], **more: Any) -> None:
    facts = {key: {"id": f"{key}/a", "higher_is_better": key == "good", "unit": "-"} for key in figures}
    sampler = {"guidance_scale": guidance, "feather": 2}
    config = {"video": {"name": case}, "seed": seed, "sampler": sampler, "cache": case}
    run = folder / f"{case}-{seed}-{guidance}"
    for edit in more.get("edits", ["x"]):
        (run / "edits" / edit).mkdir(parents=True)
        (run / "edits" / edit / "edit.json").write_text("{}")
    record = {"config": config | more.get("config", {}), "seed": seed, "commit": "abc", "hardware": {"threads": 2}}
    (run / "run.json").write_text(json.dumps(record | {"weights": more.get("weights", {"unet/a": "w"})}))
    edits = dict.fromkeys(more.get("edits", ["x"]), figures)
    measured = {"edits": edits, "metrics": more.get("facts", facts), "reconstruction_psnr": 30.0}
    (run / "metrics.json").write_text(json.dumps(measured))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for case, offset in (("bus", 0.0), ("car", 10.0)):
        for seed in (1, 2):
            written(tmp_path / "s", case, seed, 2.0, {"good": offset + seed, "bad": 1.0})
            written(tmp_path / "s", case, seed, 10.0, {"good": offset + seed + 1, "bad": None})
    return tmp_path / "s"


def test_means_are_over_cases_and_the_spread_is_between_seeds(sweep: Path, tmp_path: Path) -> None:
    metrics = ["good", "bad", "reconstruction_psnr", "unknown"]
    readme = study(StudyOptions(str(sweep), str(tmp_path / "out"), metrics=metrics))
    content = json.loads((tmp_path / "out" / "study.json").read_text())
    assert content["axes"] == ["sampler.guidance_scale"]
    low, high = (mean for mean in content["means"] if mean["metric"] == "good")
    assert (low["value"], high["value"]) == ("guidance_scale=2.0", "guidance_scale=10.0")  # in order of the numbers
    assert low["mean"] == pytest.approx((1.5 + 11.5) / 2) and low["cases"] == {"bus": 1.5, "car": 11.5}
    assert low["seeds_sd"] == pytest.approx(math.sqrt(0.5)) and low["n"] == 4
    assert "**7.5 ± 0.71**" in readme.read_text() and "8 edits of bus, car; seeds 1, 2" in readme.read_text()
    assert [mean["value"] for mean in content["means"] if mean["metric"] == "bad"] == ["guidance_scale=2.0"]
    assert {mean["mean"] for mean in content["means"] if mean["metric"] == "reconstruction_psnr"} == {30.0}
    assert (tmp_path / "out" / "figure.png").stat().st_size > 1000


def test_what_people_wrote_is_kept(sweep: Path, tmp_path: Path) -> None:
    options = StudyOptions(str(sweep), str(tmp_path / "out"), metrics=["good"])
    readme = study(options)
    readme.write_text(readme.read_text().replace("Not written yet.", "Guidance helps.\n\nUntil it doesn't."))
    assert study(options).read_text().endswith("## Findings\n\nGuidance helps.\n\nUntil it doesn't.\n")
    readme.write_text(readme.read_text().replace("## Findings", "## As an earlier version called it"))
    assert study(options).read_text().endswith("## Findings\n\nGuidance helps.\n\nUntil it doesn't.\n")


def test_the_picture_is_an_axis_within_a_clip_and_not_between_clips(tmp_path: Path) -> None:
    def shown(case: str, seed: int, pictures: Any) -> None:
        video = {"name": case, "edits": {"x": {"target_image": pictures}}}
        written(tmp_path, case, seed, 2.0, {"good": float(seed)}, config={"video": video})

    shown("bus", 1, "clips/bus/a.png")
    shown("car", 1, "clips/car/b.png")
    assert read_sweep(tmp_path).axes == []
    shown("bus", 2, ["clips/bus/a.png", "clips/bus/c.png"])
    sweep = read_sweep(tmp_path)
    assert sweep.axes == ["video.target_image"]
    assert sweep.values == ["target_image=a.png", "target_image=a.png+c.png", "target_image=b.png"]


def test_two_ids_and_two_backbones_are_not_mixed_nor_edits_of_one_run(sweep: Path, tmp_path: Path) -> None:
    written(tmp_path / "two", "bus", 1, 2.0, {"good": 1.0}, edits=["car", "van"])
    assert {result.case for result in read_sweep(tmp_path / "two").results} == {"bus/car", "bus/van"}
    assert {result.case for result in read_sweep(sweep, "b*").results} == {"bus"}
    written(sweep, "van", 1, 2.0, {"good": 1.0}, facts={"good": {"id": "good/b", "higher_is_better": True}})
    with pytest.raises(EvalError, match="good/b"):
        read_sweep(sweep)
    with pytest.raises(EvalError, match="no measured run"):
        read_sweep(sweep, "nobody")
    written(sweep, "bike", 1, 2.0, {"good": 1.0}, weights={"unet/a": "v"})
    with pytest.raises(EvalError, match="UNets v, w"):
        read_sweep(sweep, "b*")


@pytest.mark.parametrize(
    "record",
    [
        "[]",
        "hydra: 3",
        "a: &a [*a]",
        "\0",
        "hydra: {runtime: {choices: {experiment: ../train}}, overrides: {task: [1]}}",
    ],
)
def test_hydras_record_is_data(sweep: Path, tmp_path: Path, record: str) -> None:
    """A stranger's multirun.yaml names a file elsewhere, or is none."""
    (sweep / "multirun.yaml").write_text(record)
    text = study(StudyOptions(str(sweep), str(tmp_path / "out"), metrics=["good"])).read_text()
    assert "Tune on one clip" not in text and "| guidance_scale=2.0 |" in text


def test_texts_that_are_not_utf8_are_kept(sweep: Path, tmp_path: Path) -> None:
    options = StudyOptions(str(sweep), str(tmp_path / "out"), metrics=["good"])
    readme = study(options)
    readme.write_bytes(before := readme.read_bytes() + b"gr\xfcn")
    with pytest.raises(EvalError, match=r"README\.md is no UTF-8 text"):
        study(options)
    assert readme.read_bytes() == before


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("run.json", {"config": []}),
        ("run.json", {"config": {"video": {"name": 3}}}),
        ("run.json", {"weights": 3, "hardware": "x"}),
        ("metrics.json", {"stages": {"masking": {"seconds": "x"}}}),
        ("metrics.json", {"reconstruction_psnr": math.nan}),
    ],
)
def test_a_damaged_run_is_named(sweep: Path, tmp_path: Path, file: str, change: dict[str, Any]) -> None:
    path = sweep / "bus-1-2.0" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"^[^\n]*(bus-1-2\.0|hardware|UNets)[^\n]*$"):
        study(StudyOptions(str(sweep), str(tmp_path / "out"), metrics=["good"]))
