"""The leaderboard: statistics against a written-out reference, and what it refuses, lists and embeds."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from eval.collect import Result, apart, collect, find_failed, find_runs
from eval.leaderboard import LeaderboardOptions, leaderboard
from eval.metric import MetricError
from eval.page import notices
from eval.table import by_method, groups_of, interval, missing, paired, repeated, rows
from tave.video import ReadOptions, read_clip, write_video

ID = {"id": "residue/-/96x96/pixels/v1", "higher_is_better": False, "unit": "share"}


def make_run(place: Path, case: str, figures: dict[str, dict[str, float]], *, seed: int = 33, about: Any = None) -> Path:
    frames = torch.zeros(2, 3, 32, 32)
    for method in figures:
        folder = place / "edits" / method
        folder.mkdir(parents=True)
        write_video(folder / "edited.mp4", frames, 8.0)
        told = {"case": case, "group": ["larger"] if case != "a" else ["smaller"], "method": method, "seed": seed}
        (folder / "edit.json").write_text(json.dumps({"name": method, "benchmark": told}))
    write_video(place / "source.mp4", frames, 8.0)
    (place / "metrics.json").write_text(json.dumps({"edits": figures, "metrics": {"residue": about or ID}}))
    return place


@pytest.fixture
def board(tmp_path: Path) -> Path:
    for case, ours, theirs in (("a", 0.1, 0.3), ("b", 0.2, 0.5), ("c", 0.0, 0.1)):
        make_run(tmp_path / case, case, {"patent": {"residue": theirs}, "tave": {"residue": ours}})
    return tmp_path


def result(case: str, method: str, value: float, seed: int = 0) -> Result:
    return Result(case, method, ("g",), seed, {"residue": value}, Path(case))


def test_the_interval_is_that_of_resampled_means() -> None:
    values = [0.1, 0.4, 0.2, 0.9]
    rng, means = np.random.default_rng(0), []
    for chosen in rng.integers(4, size=(2000, 4)):
        means.append(np.mean([values[i] for i in chosen]))
    expected = (0.4, np.quantile(means, 0.025), np.quantile(means, 0.975))
    assert interval(values) == pytest.approx(expected)
    assert interval([0.25]) == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="needs a value"):
        interval([])


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = [low <= 0 <= high for _, low, high in (interval(rng.normal(size=30).tolist(), draws=400) for _ in range(200))]
    assert 0.88 < np.mean(held) < 0.99


def test_seeds_of_a_case_are_averaged_and_the_case_counts_once() -> None:
    found = [result("a", "tave", 0.2, 1), result("a", "tave", 0.4, 2), result("b", "tave", 0.5)]
    assert by_method(found, "residue") == {"tave": {"a": pytest.approx(0.3), "b": 0.5}}
    assert rows(found, ["residue"], "tave")[0].n == 2


def test_pairs_are_of_the_cases_that_both_have() -> None:
    found = [result("a", "tave", 0.2), result("b", "tave", 0.6), result("a", "other", 0.5), result("c", "other", 0.0)]
    (made,) = (pair for pair in paired(found, ["residue"], "tave") if pair.group == "all")
    assert (made.method, made.versus, made.n) == ("tave", "other", 1)
    assert made.difference == pytest.approx(-0.3)


def test_five_files_from_run_folders_alone(board: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = leaderboard(LeaderboardOptions(runs=str(board / "**"), out=str(out)))
    told = json.loads((out / "leaderboard.json").read_text())
    assert told["methods"] == ["tave", "patent"] and told["groups"] == ["all", "smaller", "larger"]
    ours = next(r for r in told["rows"] if (r["method"], r["group"]) == ("tave", "all"))
    assert ours["mean"] == pytest.approx(0.1) and ours["n"] == 3
    pair = next(p for p in told["paired"] if p["group"] == "all")
    assert pair["difference"] == pytest.approx(-0.2) and pair["high"] < 0
    with (out / "leaderboard.csv").open() as source:
        assert len(list(csv.DictReader(source))) == len(told["rows"])
    assert "residue ↓" in (out / "leaderboard.md").read_text()
    text = made.read_text()
    assert "http" not in text and text.count("data:video/mp4;base64,") == 3 * 3
    again = leaderboard(LeaderboardOptions(runs=str(board / "**"), out=str(tmp_path / "again")))
    assert again.read_text() == text


def test_every_case_and_what_its_figures_are_read_against_are_told(tmp_path: Path) -> None:
    """Figures of the source, the ideal clip and the judge's bounds stand beside a metric and are none of their own."""
    about = {
        name: {"id": f"{name}/v1", "higher_is_better": better, "unit": "share"}
        for name, better in (("warp_error", False), ("warp_error_source", None), ("warp_error_ideal", None), ("energy", None))
    }
    for case, figures in (("a", (0.4, 0.1, 0.02, 7)), ("b", (0.2, 0.3, 0.04, 9))):
        home = make_run(tmp_path / case, case, {"tave": dict(zip(about, figures, strict=True)), "patent": {"energy": 5.0}})
        told = json.loads((home / "metrics.json").read_text()) | {"metrics": about}
        (home / "metrics.json").write_text(json.dumps(told))
    page = leaderboard(LeaderboardOptions(runs=str(tmp_path), out=str(tmp_path / "out")))
    told = json.loads(page.with_suffix(".json").read_text())
    assert list(told["metrics"]) == ["warp_error", "energy"]  # what has no better direction is measured of an edit as well
    of_all = {row["reference"]: row for row in told["beside"] if row["group"] == "all"}
    assert {name: (row["metric"], row["mean"], row["n"]) for name, row in of_all.items()} == {
        "source": ("warp_error", pytest.approx(0.2), 2),
        "ideal": ("warp_error", pytest.approx(0.03), 2),
    }
    assert "| *ideal* | 0.03 [" in page.with_suffix(".md").read_text()
    with page.with_name("cases.csv").open() as source:
        lines = {(line["case"], line["method"]): line for line in csv.DictReader(source)}
    assert len(lines) == 4 and lines["b", "tave"]["warp_error_ideal"] == "0.04" and lines["b", "patent"]["warp_error"] == ""
    assert lines["a", "tave"]["groups"] == "smaller" and lines["a", "patent"]["energy"] == "5"


def test_a_table_without_controls_says_so(board: Path, tmp_path: Path) -> None:
    told = "No untouched source, no frozen frame, no pasted target: python -m tave.benchmark makes them."
    page = leaderboard(LeaderboardOptions(runs=str(board), out=str(tmp_path / "out")))
    assert told in page.read_text() and told in page.with_suffix(".md").read_text()
    path = make_run(board / "d", "d", {"source_unchanged": {"residue": 1.0}}) / "edits" / "source_unchanged" / "edit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"control": True}))
    assert told not in leaderboard(LeaderboardOptions(runs=str(board), out=str(tmp_path / "more"))).read_text()


def test_two_ids_never_share_a_column(board: Path) -> None:
    make_run(board / "d", "d", {"tave": {"residue": 0.0}}, about=ID | {"id": "residue/-/128x128/pixels/v1"})
    with pytest.raises(MetricError, match=r"128x128.*96x96|96x96.*128x128"):
        collect(find_runs(str(board)))


def test_clips_of_two_sizes_are_told_what_helps(board: Path) -> None:
    make_run(board / "d", "d", {"tave": {"residue": 0.0}}, about=ID | {"id": "residue/-/128x96/pixels/v1"})
    told = r"residue is measured at 128x96, but at 96x96 in .*; edit all clips at one size \(video.width=... video.height=...\)"
    with pytest.raises(MetricError, match=told):
        collect(find_runs(str(board)))
    make_run(board / "d2", "d", {"tave": {"residue": 0.0}}, about=ID | {"id": "residue/-/96x96/pixels/v2"})
    with pytest.raises(MetricError, match="score both anew"):
        collect([board / "a", board / "d2"])


def test_few_cases_decide_nothing() -> None:
    for count, decided in ((2, False), (5, False), (6, True)):
        found = [result(str(i), method, value + i) for i in range(count) for method, value in (("tave", 0.0), ("other", 1.0))]
        assert [pair.decided for pair in paired(found, ["residue"], "tave") if pair.group == "all"] == [decided]
    rng = np.random.default_rng(2)
    even = [result(str(i), method, float(rng.normal())) for i in range(40) for method in ("tave", "other")]
    assert not any(pair.decided for pair in paired(even, ["residue"], "tave"))


def test_the_page_marks_what_is_decided_and_says_that_few_cases_are_not(board: Path, tmp_path: Path) -> None:
    page = leaderboard(LeaderboardOptions(runs=str(board), out=str(tmp_path / "out")))
    told = json.loads(page.with_suffix(".json").read_text())
    assert told["interval"]["fewest"] == 6 and not any(pair["decided"] for pair in told["paired"])
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert "Intervals of few cases are too narrow: below 6 cases no difference is decided" in text
    assert "if(p.decided)td.classList.add('clear')" in page.read_text()


def test_what_failed_is_listed(board: Path, tmp_path: Path) -> None:
    (board / "failed.json").write_text(json.dumps({"failed": [{"case": "z", "method": "tave", "error": "no <such> clip"}]}))
    page = leaderboard(LeaderboardOptions(runs=str(board), out=str(tmp_path / "out")))
    assert "no &lt;such&gt; clip" in page.read_text()
    assert "- z, tave: no <such> clip" in page.with_suffix(".md").read_text()


@pytest.mark.parametrize("place", [".", "elsewhere/deep", "a/edits"])
@pytest.mark.parametrize("bare", [True, False])
def test_failures_are_found_at_any_depth_as_a_list_or_an_object(board: Path, place: str, bare: bool) -> None:
    listed = [{"case": "z", "method": "tuning", "error": "too short"}]
    (board / place).mkdir(parents=True, exist_ok=True)
    (board / place / "failed.json").write_text(json.dumps(listed if bare else {"failed": listed}))
    assert collect([], find_failed(str(board / "**"))).failed == listed


def test_a_case_that_lacks_a_row_is_listed_unless_a_failure_says_why() -> None:
    found = [result("a", "tave", 0.2), result("a", "other", 0.6), result("b", "tave", 0.5), result("c", "other", 0.5)]
    assert missing(found) == [{"case": "b", "method": "other"}, {"case": "c", "method": "tave"}]
    assert missing(found, [{"case": "b", "method": "other", "error": "x"}]) == [{"case": "c", "method": "tave"}]


def test_a_case_without_any_result_is_listed(board: Path, tmp_path: Path) -> None:
    (board / "z").mkdir()
    entry = {"case": "z", "seed": 34, "method": "tuning", "error": "too short"}
    (board / "z" / "failed.json").write_text(json.dumps({"failed": [entry]}))
    page = leaderboard(LeaderboardOptions(runs=str(board / "**"), out=str(tmp_path / "out")))
    told = json.loads(page.with_suffix(".json").read_text())
    assert told["failed"] == [entry]
    assert told["missing"] == [{"case": "z", "method": method} for method in ("patent", "tave")]


def test_one_seed_twice_is_told_and_two_seeds_are_not() -> None:
    found = [result("a", "tave", 0.2, 1), result("a", "tave", 0.4, 2), result("b", "tave", 0.5), result("b", "tave", 0.7)]
    assert repeated(found) == [{"case": "b", "method": "tave", "seed": 0, "n": 2}]
    told = {"failed": [], "missing": [{"case": "c", "method": "x"}], "repeated": repeated(found), "controls": ["per_frame"]}
    assert list(notices(told)) == ["Missing", "There more than once, and averaged"]


def test_a_group_called_all_is_no_second_tab() -> None:
    assert groups_of([Result("a", "tave", ("all", "g"), 0, {}, Path("a"))]) == ["all", "g"]


def test_a_control_is_listed_where_the_asked_metric_does_not_fit_it(board: Path, tmp_path: Path) -> None:
    told = json.loads((board / "a" / "metrics.json").read_text())
    told["edits"]["source_unchanged"] = {}
    (board / "a" / "metrics.json").write_text(json.dumps(told))
    folder = board / "a" / "edits" / "source_unchanged"
    folder.mkdir()
    label = {"case": "a", "group": [], "method": "source_unchanged", "seed": 33}
    (folder / "edit.json").write_text(json.dumps({"benchmark": label}))
    page = leaderboard(LeaderboardOptions(runs=str(board / "*"), out=str(tmp_path / "out"), metrics=["residue"]))
    assert "| source_unchanged |  |" in page.with_suffix(".md").read_text()


def test_markdown_holds_the_paired_differences(board: Path, tmp_path: Path) -> None:
    page = leaderboard(LeaderboardOptions(runs=str(board / "**"), out=str(tmp_path / "out")))
    after = page.with_suffix(".md").read_text().partition("| tave minus | residue ↓ |")[2]
    assert after.splitlines()[2].startswith("| patent | -0.2 [")


def test_the_page_shows_a_lossless_source_in_its_own_colours(board: Path, tmp_path: Path) -> None:
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 32, 32)
    write_video(board / "a" / "source.mp4", red, 8.0, lossless=True)
    page = leaderboard(LeaderboardOptions(runs=str(board / "a"), out=str(tmp_path / "out")))
    embedded = page.read_text().split("data:video/mp4;base64,")[1].partition('"')[0]
    (tmp_path / "seen.mp4").write_bytes(base64.b64decode(embedded))
    seen = read_clip(tmp_path / "seen.mp4", ReadOptions(frames=None, multiple=1)).frames
    assert float((seen - red).abs().max()) < 0.05


def test_every_clip_on_the_page_is_one_that_browsers_play(board: Path, tmp_path: Path) -> None:
    grey = torch.linspace(-1, 1, 35).expand(2, 3, 33, 35)  # odd sides: 4:2:0 can't hold them
    write_video(board / "a" / "edits" / "tave" / "edited.mp4", grey, 8.0)
    write_video(board / "a" / "source.mp4", grey, 8.0, lossless=True)
    page = leaderboard(LeaderboardOptions(runs=str(board / "a"), out=str(tmp_path / "out")))
    clips = [part.partition('"')[0] for part in page.read_text().split("data:video/mp4;base64,")[1:]]
    assert len(clips) == 3
    for index, clip in enumerate(clips):
        (tmp_path / "seen.mp4").write_bytes(base64.b64decode(clip))
        with av.open(str(tmp_path / "seen.mp4")) as file:
            context = file.streams.video[0].codec_context
            assert (context.pix_fmt, context.profile) == ("yuv420p", "High"), index
        frames = read_clip(tmp_path / "seen.mp4", ReadOptions(frames=None, multiple=1)).frames
        if frames.shape[2:] != (32, 32):
            assert frames.shape == (2, 3, 34, 36) and float((frames[..., :33, :35] - grey).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("file", "keys", "value", "told"),
    [
        ("metrics.json", ["edits", "tave", "residue"], float("nan"), "residue is nan"),
        ("metrics.json", ["edits"], [1], "edits must be"),
        ("metrics.json", ["edits", "tave"], 1, "tave must be"),
        ("metrics.json", ["metrics", "residue"], {}, "residue has no id"),
        ("edits/tave/edit.json", ["benchmark"], {"method": "tave"}, "names no case"),
        ("failed.json", ["failed"], [{"case": "z"}], "must list objects"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    board: Path, tmp_path: Path, file: str, keys: list[str], value: Any, told: str
) -> None:
    path = board / "a" / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(MetricError, match=told) as caught:
        leaderboard(LeaderboardOptions(runs=str(board), out=str(tmp_path / "out")))
    assert "\n" not in str(caught.value) and str(path.parent) in str(caught.value) and not (tmp_path / "out").exists()


def test_a_figure_without_an_id_is_not_measured(board: Path) -> None:
    told = json.loads((board / "a" / "metrics.json").read_text()) | {"metrics": {}}
    (board / "a" / "metrics.json").write_text(json.dumps(told))
    assert [r.figures for r in collect([board / "a"]).results] == [{}, {}]


def test_what_can_not_be_written_leaves_nothing(board: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "leaderboard.html").mkdir(parents=True)
    with pytest.raises(MetricError, match="can't be written"):
        leaderboard(LeaderboardOptions(runs=str(board), out=str(out)))
    assert [path.name for path in out.iterdir()] == ["leaderboard.html"]


def test_a_run_outside_of_the_benchmark_is_a_case_of_its_own(board: Path) -> None:
    path = board / "a" / "edits" / "tave" / "edit.json"
    path.write_text(json.dumps({"name": "tave"}))
    assert ("a/tave", "tave") in {(r.case, r.method) for r in collect([board / "a"]).results}


def plain_run(
    place: Path, value: float, chosen: dict[str, Any] | None, edit: dict[str, Any] | None = None, **mask: Any
) -> Path:
    """A run of ``tave.train``, as far as a table reads it."""
    make_run(place, "-", {"suv": {"residue": value}})
    (place / "edits/suv/edit.json").write_text(json.dumps({"name": "suv"} | (edit or {})))
    config = {"video": {"name": "bus", "path": f"{place}.mp4"}, "seed": 33, "mask": {"dilate": 1, "union": "none"} | mask}
    backbone = {"name": "roadside", "path": f"{place}/weights"}
    record = {"config": config | {"backbone": backbone}, "chosen": chosen, "weights": {"unet/model": "ab"}}
    (place / "run.json").write_text(json.dumps(record))
    return place


def methods(place: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one in apart(collect(find_runs(str(place)))).results:
        found.setdefault(one.method, []).append(one.figures["residue"])
    return found


def test_ordinary_runs_are_rows_by_experiment_and_overrides(tmp_path: Path) -> None:
    plain = ["+video=bus_to_suv", "seed=34", "logger=[csv,wandb]", "cache=/tmp/x", "metrics.judge=null", "hydra.run.dir=x"]
    plain_run(tmp_path / "a", 0.1, {"experiment": None, "overrides": plain})
    plain_run(tmp_path / "b", 0.3, {"experiment": None, "overrides": plain[:1]})
    plain_run(tmp_path / "c", 0.5, {"experiment": "patent", "overrides": [*plain, "experiment=patent"]}, union="target")
    for value in (2, 3):
        words = {"experiment": None, "overrides": [f"mask.dilate={value}", *plain]}
        plain_run(tmp_path / f"d{value}", 0.5 + value, words, dilate=value)
    again = {"overrides": ["run=x", "mask.dilate=4", "video.edit=suv"], "options": {"mask": {"dilate": 4, "union": "none"}}}
    plain_run(tmp_path / "e", 0.7, {"experiment": None, "overrides": plain}, again)
    expected = {"tave": [0.1, 0.3], "patent": [0.5], "tave mask.dilate=2": [2.5], "tave mask.dilate=3": [3.5]}
    assert methods(tmp_path) == expected | {"tave mask.dilate=4": [0.7]}


def test_runs_that_dont_tell_their_words_are_rows_by_what_differs(tmp_path: Path) -> None:
    """Those of the Python API and older ones; where the weights and the target lie doesn't count."""
    for name, value, mask in (("a", 0.1, {}), ("b", 0.2, {}), ("c", 0.5, {"dilate": 2}), ("d", 0.7, {"settle": "x"})):
        plain_run(tmp_path / name, value, None, None, **mask)
    told = json.loads((tmp_path / "d/run.json").read_text()) | {"weights": {"unet/model": "cd"}}
    del told["config"]["mask"]["settle"]
    (tmp_path / "d/run.json").write_text(json.dumps(told))
    found = methods(tmp_path)
    assert sorted(found.values()) == [[0.1, 0.2], [0.5], [0.7]]
    assert all("mask.dilate=" in name and "weights=" in name and "path" not in name for name in found)


def test_two_benchmarks_with_a_case_of_one_name_are_refused(board: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "benchmark_small" / "a", "a", {"tave": {"residue": 0.1}})
    with pytest.raises(MetricError, match="hold the case a") as caught:
        leaderboard(LeaderboardOptions(runs=str(tmp_path), out=str(tmp_path / "out")))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value) and str(tmp_path / "benchmark_small") in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"runs": "nowhere/**"}, "no scored run folder"),
        ({"versus": "nobody"}, "no such row"),
        ({"metrics": ["beauty"]}, "no run has measured"),
    ],
)
def test_what_can_not_be_shown_is_said_in_one_line(board: Path, tmp_path: Path, given: dict[str, Any], told: str) -> None:
    options = LeaderboardOptions(**{"runs": str(board), "out": str(tmp_path / "out"), **given})
    with pytest.raises(MetricError, match=told) as caught:
        leaderboard(options)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
