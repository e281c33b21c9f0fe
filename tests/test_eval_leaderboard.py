"""The leaderboard: statistics against a written-out reference, and what it refuses, lists and embeds."""

from __future__ import annotations

import base64
import csv
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from eval import EvalError
from eval.leaderboard import LeaderboardOptions, leaderboard, markdown
from eval.page import page
from eval.runs import Result, find, read_results, split_methods
from eval.tables import as_json, by_method, interval, means, missing, paired, repeated
from tave.config import WHOLE
from tave.files import FileError
from tave.video import read_clip, write_video

FACTS = {"id": "residue/-/96x96/pixels/v1", "higher_is_better": False, "unit": "share"}


def label(edit: Path, case: str, method: str, seed: int = 33, **more: Any) -> None:
    edit.mkdir(parents=True, exist_ok=True)
    group = ["larger"] if case != "a" else ["smaller"]
    benchmark = {"case": case, "group": group, "method": method, "seed": seed}
    (edit / "edit.json").write_text(json.dumps({"name": method, "benchmark": benchmark} | more))


def make_run(place: Path, case: str, figures: dict[str, dict[str, float]], facts: dict[str, Any] | None = None) -> Path:
    frames = torch.zeros(2, 3, 32, 32)
    for method in figures:
        label(place / "edits" / method, case, method)
        write_video(place / "edits" / method / "edited.mp4", frames, 8.0)
    write_video(place / "source.mp4", frames, 8.0)
    (place / "metrics.json").write_text(json.dumps({"edits": figures, "metrics": facts or {"residue": FACTS}}))
    return place


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for case, ours, theirs in (("a", 0.1, 0.3), ("b", 0.2, 0.5), ("c", 0.0, 0.1)):
        make_run(tmp_path / case, case, {"patent": {"residue": theirs}, "tave": {"residue": ours}})
    return tmp_path


def show(folder: Path, out: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    """The page's path, and the content of leaderboard.json."""
    page = leaderboard(LeaderboardOptions(**{"runs": str(folder), "out": str(out), **options}))
    return page, json.loads(page.with_suffix(".json").read_text())


def result(case: str, method: str, value: float, seed: int = 0) -> Result:
    return Result(case, method, ("g",), seed, {"residue": value}, Path(case))


def test_the_interval_is_that_of_resampled_means() -> None:
    values = [0.1, 0.4, 0.2, 0.9]
    drawn = [np.mean([values[i] for i in chosen]) for chosen in np.random.default_rng(0).integers(4, size=(2000, 4))]
    assert interval(values) == pytest.approx((0.4, np.quantile(drawn, 0.025), np.quantile(drawn, 0.975)))
    assert interval([0.25]) == (0.25, 0.25, 0.25)


def test_seeds_of_a_case_are_averaged_and_the_case_counts_once() -> None:
    found = [result("a", "tave", 0.2, 1), result("a", "tave", 0.4, 2), result("b", "tave", 0.5)]
    assert repeated([*found, found[0]]) == [{"case": "a", "method": "tave", "seed": 1, "n": 2}]
    assert by_method(found, "residue") == {"tave": {"a": pytest.approx(0.3), "b": 0.5}}
    assert means(found, ["residue"], "tave")[0]["n"] == 2


def test_pairs_are_of_the_cases_that_both_have() -> None:
    found = [result("a", "tave", 0.2), result("b", "tave", 0.6), result("a", "other", 0.5), result("c", "other", 0.0)]
    (made,) = (pair for pair in paired(found, ["residue"], "tave") if pair["group"] == "all")
    assert (made["method"], made["versus"], made["n"]) == ("other", "tave", 1)
    assert made["difference"] == pytest.approx(-0.3)


@pytest.mark.parametrize(("count", "decided"), [(2, False), (5, False), (6, True)])
def test_few_cases_decide_nothing(count: int, decided: bool) -> None:
    both = [(str(i), method, value + i) for i in range(count) for method, value in (("tave", 0.0), ("other", 1.0))]
    pairs = paired([result(*each) for each in both], ["residue"], "tave")
    assert [pair["decided"] for pair in pairs if pair["group"] == "all"] == [decided]


@pytest.fixture
def pasted(tmp_path: Path) -> Path:
    """Seven cases with the method, the patent and the control ``pasted``, which the last case lacks."""
    facts = {
        "ideal_psnr_aligned": {"id": "ideal_psnr_aligned/-/96x96/pixels/v1", "higher_is_better": True, "unit": "dB"}
    }
    for number in range(7):
        case, nearness = str(number), {"tave": 15.0 + number, "patent": 11.0, "pasted": 14.0 + number % 2}
        if number == 6:
            del nearness["pasted"]
        place = tmp_path / "runs" / case
        make_run(place, case, {method: {"ideal_psnr_aligned": value} for method, value in nearness.items()}, facts)
        if number < 6:
            label(place / "edits/pasted", case, "pasted", control=True)
    return tmp_path / "runs"


def test_gains_are_over_a_control_in_the_same_case(pasted: Path, tmp_path: Path) -> None:
    page, board = show(pasted, tmp_path / "out")
    gains = [each for each in board["means"] if each["metric"] == "gain_over_pasted" and each["group"] == "all"]
    ours = [15.0 + number - 14.0 - number % 2 for number in range(6)]
    assert [(each["method"], each["n"]) for each in gains] == [("tave", 6), ("patent", 6)]
    assert [gains[0][key] for key in ("mean", "low", "high")] == pytest.approx(interval(ours))
    assert gains[1]["mean"] == pytest.approx(11.0 - 14.5)
    facts = board["metrics"]["gain_over_pasted"]
    assert facts == {"id": "gain_over_pasted/-/96x96/pixels/v1", "higher_is_better": True, "unit": "dB"}
    assert (
        "gain_over_pasted ↑" in page.with_suffix(".md").read_text()
        and "gain_over_pasted_true_pose" not in board["metrics"]
    )
    _, chosen = show(pasted, tmp_path / "again", metrics=["gain_over_pasted"])
    assert list(chosen["metrics"]) == ["gain_over_pasted"]


def test_an_edit_that_is_only_called_pasted_is_no_control(pasted: Path, tmp_path: Path) -> None:
    for number in range(6):
        label(pasted / str(number) / "edits/pasted", str(number), "pasted")
    _, board = show(pasted, tmp_path / "out")
    assert list(board["metrics"]) == ["ideal_psnr_aligned"]


def test_five_files_from_run_folders_alone(runs: Path, tmp_path: Path) -> None:
    page, board = show(runs / "**", tmp_path / "out")  # type: ignore[arg-type]
    assert board["methods"] == ["tave", "patent"] and board["groups"] == ["all", "smaller", "larger"]
    ours = next(mean for mean in board["means"] if (mean["method"], mean["group"]) == ("tave", "all"))
    assert ours["mean"] == pytest.approx(0.1) and ours["n"] == 3
    pair = next(pair for pair in board["paired"] if pair["group"] == "all")
    assert pair["difference"] == pytest.approx(-0.2) and pair["high"] < 0 and not pair["decided"]
    with page.with_suffix(".csv").open() as source:
        assert len(list(csv.DictReader(source))) == len(board["means"])
    text, markdown = page.read_text(), page.with_suffix(".md").read_text()
    after = markdown.partition("| tave minus | residue ↓ |")[2]
    assert after.splitlines()[2].startswith("| patent | -0.2 [")
    assert "http" not in text and text.count("data:video/mp4;base64,") == 3 * 3
    for notice in ("below 6 cases no difference is decided", "No untouched source, no frozen frame"):
        assert notice in text and notice in markdown
    assert show(runs / "[abc]", tmp_path / "again")[0].read_text() == text
    cases = text.split('<section class="case"')[1:]
    assert [case.count('<img class="strip"') for case in cases] == [1, 1, 1]  # source above tave


def test_figures_that_matter_come_first_and_what_is_missing_is_folded_below_the_cases(tmp_path: Path) -> None:
    names = ("mask_recall", "background_psnr", "residue_old", "judge_vehicle_accuracy", "clip_text")
    facts = {name: {"id": f"{name}/v1", "higher_is_better": name != "residue_old", "unit": "share"} for name in names}
    figures: dict[str, float] = dict.fromkeys(names, 0.5)
    make_run(tmp_path / "a", "a", {"tave": figures, "patent": figures}, facts)
    make_run(tmp_path / "b", "b", {"tave": figures}, facts)
    page, board = show(tmp_path, tmp_path / "out")
    first = ["judge_vehicle_accuracy", "residue_old", "background_psnr"]
    assert board["headline"] == first and list(board["metrics"]) == [*first, "mask_recall", "clip_text"]
    text = page.read_text()
    assert 0 < text.index('id="every"') < text.index('class="cases"') < text.index("<summary>Missing (1)</summary>")
    _, chosen = show(tmp_path, tmp_path / "again", metrics=["clip_text", "residue_old"])
    assert chosen["headline"] == ["clip_text", "residue_old"]


def test_values_to_compare_with_stand_beside_their_metric(tmp_path: Path) -> None:
    directions = {"warp_error": False, "warp_error_source": None, "warp_error_ideal": None, "energy": None}
    facts = {n: {"id": f"{n}/v1", "higher_is_better": better, "unit": "share"} for n, better in directions.items()}
    for case, figures in (("a", (0.4, 0.1, 0.02, 7)), ("b", (0.2, 0.3, 0.04, 9))):
        ours = dict(zip(facts, figures, strict=True))
        make_run(tmp_path / case, case, {"tave": ours, "patent": {"energy": 5.0}}, facts)
    page, board = show(tmp_path, tmp_path / "out")
    assert list(board["metrics"]) == ["warp_error", "energy"]
    of_all = {each["reference"]: each for each in board["references"] if each["group"] == "all"}
    assert {name: (each["metric"], each["mean"], each["n"]) for name, each in of_all.items()} == {
        "source": ("warp_error", pytest.approx(0.2), 2),
        "ideal": ("warp_error", pytest.approx(0.03), 2),
    }
    assert "| *ideal* | 0.03 [" in page.with_suffix(".md").read_text()
    with page.with_name("cases.csv").open() as source:
        lines = {(line["case"], line["method"]): line for line in csv.DictReader(source)}
    assert len(lines) == 4 and lines["b", "tave"]["warp_error_ideal"] == "0.04"
    assert lines["b", "patent"]["warp_error"] == ""
    assert lines["a", "tave"]["groups"] == "smaller" and lines["a", "patent"]["energy"] == "5"


def test_two_ids_never_share_a_column(runs: Path) -> None:
    make_run(runs / "d", "d", {"tave": {"residue": 0.0}}, {"residue": FACTS | {"id": "residue/-/128x96/pixels/v1"}})
    with pytest.raises(EvalError, match=r"d: residue is residue/-/128x96.*, but residue/-/96x96.* in .*video\.width"):
        read_results(find(str(runs)))


def test_names_are_escaped_in_markdown_and_html(runs: Path, tmp_path: Path) -> None:
    make_run(runs / "d", "d", {"odd": {"residue": 0.3}})
    label(runs / "d/edits/odd", "d", "a|<b>")
    failure = {"case": "z", "method": "tave", "error": "no <such> clip"}
    (runs / "failed.json").write_text(json.dumps({"failed": [failure]}))
    page, board = show(runs, tmp_path / "out")
    text, markdown = page.read_text(), page.with_suffix(".md").read_text()
    assert "| a\\|&lt;b&gt; | 0.3 [" in markdown and "<b>" not in markdown and "<such>" not in text + markdown
    assert "no &lt;such&gt; clip" in text and board["failed"] == [failure]
    assert {"case": "z", "method": "patent"} in board["missing"]  # a case without any result


def test_a_case_that_lacks_a_method_is_listed_unless_a_failure_is() -> None:
    found = [result("a", "tave", 0), result("a", "other", 0), result("b", "tave", 0), result("c", "other", 0)]
    assert missing(found) == [{"case": "b", "method": "other"}, {"case": "c", "method": "tave"}]
    assert missing(found, [{"case": "b", "method": "other", "error": "x"}]) == [{"case": "c", "method": "tave"}]


def test_every_clip_on_the_page_is_one_that_browsers_play(runs: Path, tmp_path: Path) -> None:
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 33, 35)  # odd sides: 4:2:0 has none
    write_video(runs / "a/edits/tave/edited.mp4", red, 8.0)
    write_video(runs / "a/source.mp4", red, 8.0, lossless=True)
    page, _ = show(runs / "a", tmp_path / "out")
    clips = [part.partition('"')[0] for part in page.read_text().split("data:video/mp4;base64,")[1:]]
    assert len(clips) == 3
    for clip in clips:
        (tmp_path / "seen.mp4").write_bytes(base64.b64decode(clip))
        with av.open(str(tmp_path / "seen.mp4")) as file:
            context = file.streams.video[0].codec_context
            assert (context.pix_fmt, context.profile) == ("yuv420p", "High")
        frames = read_clip(tmp_path / "seen.mp4", WHOLE).frames
        if frames.shape[2:] != (32, 32):
            assert frames.shape == (2, 3, 34, 36) and float((frames[..., :33, :35] - red).abs().max()) < 0.05


def plain_run(
    place: Path, value: float, chosen: dict[str, Any] | None, edit: dict[str, Any] | None = None, **mask: Any
) -> Path:
    """A run of ``tave.train``, as far as a leaderboard reads it."""
    make_run(place, "-", {"suv": {"residue": value}})
    (place / "edits/suv/edit.json").write_text(json.dumps({"name": "suv"} | (edit or {})))
    config = {"video": {"name": "bus"}, "seed": 33, "mask": {"dilate": 1, "union": "none"} | mask}
    backbone = {"name": "roadside", "path": f"{place}/weights"}
    record = {"config": config | {"backbone": backbone}, "chosen": chosen, "weights": {"unet/model": "ab"}}
    (place / "run.json").write_text(json.dumps(record))
    return place


def methods(place: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for each in split_methods(read_results(find(str(place)))).results:
        assert each.case == "bus/suv"
        found.setdefault(each.method, []).append(each.figures["residue"])
    return found


def test_ordinary_runs_are_methods_by_experiment_and_overrides(tmp_path: Path) -> None:
    plain = [
        "+video=bus_to_suv",
        "seed=34",
        "logger=[csv,wandb]",
        "cache=/tmp/x",
        "metrics.judge=null",
        "hydra.run.dir=x",
    ]
    plain_run(tmp_path / "a", 0.1, {"experiment": None, "overrides": plain})
    plain_run(tmp_path / "b", 0.3, {"experiment": None, "overrides": plain[:1]})
    patent = {"experiment": "patent", "overrides": [*plain, "experiment=patent"]}
    plain_run(tmp_path / "c", 0.5, patent, union="target")
    for value in (2, 3):
        words = {"experiment": None, "overrides": [f"mask.dilate={value}", *plain]}
        plain_run(tmp_path / f"d{value}", 0.5 + value, words, dilate=value)
    overrides, options = ["run=x", "mask.dilate=4", "video.edit=suv"], {"mask": {"dilate": 4, "union": "none"}}
    again = {"overrides": overrides, "options": options}
    plain_run(tmp_path / "e", 0.7, {"experiment": None, "overrides": plain}, again)
    expected = {"tave": [0.1, 0.3], "patent": [0.5], "tave mask.dilate=2": [2.5], "tave mask.dilate=3": [3.5]}
    assert methods(tmp_path) == expected | {"tave mask.dilate=4": [0.7]}


def test_runs_without_recorded_overrides_are_methods_by_what_differs(tmp_path: Path) -> None:
    """Those of the Python API; the place of the weights doesn't count."""
    for name, value, mask in (("a", 0.1, {}), ("b", 0.2, {}), ("c", 0.5, {"dilate": 2}), ("d", 0.7, {})):
        plain_run(tmp_path / name, value, None, None, **mask)
    record = json.loads((tmp_path / "d/run.json").read_text()) | {"weights": {"unet/model": "cd"}}
    (tmp_path / "d/run.json").write_text(json.dumps(record))
    found = methods(tmp_path)
    assert sorted(found.values()) == [[0.1, 0.2], [0.5], [0.7]]
    assert all("mask.dilate=" in name and "weights=" in name and "path" not in name for name in found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runs": "nowhere/**"}, "no measured run folder"),
        ({"versus": "nobody"}, "no such method"),
        ({"metrics": ["beauty"]}, "no run has measured"),
        ({}, "benchmark_small both hold the case a"),
    ],
)
def test_what_cannot_be_shown_is_refused(runs: Path, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    if not given:
        make_run(tmp_path / "benchmark_small" / "a", "a", {"tave": {"residue": 0.1}})
    with pytest.raises(EvalError, match=message):
        show(runs, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


# ---- other people's files --------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None,
    True,
    -1,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x\n# y",
    [],
    [1],
    {},
    {"a": [1]},
    "\ud800",
]
RAW = [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 5000, b'{"a":' * 5000]


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON tree."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield (*at, key)
        yield from places(node[key], (*at, key))


def damage(file: Path, draw: random.Random) -> None:
    """Change, drop or rename one value of a JSON file, or replace the file."""
    if draw.random() < 0.15:
        file.write_bytes(draw.choice(RAW))
        return
    content = json.loads(file.read_text())
    *path, last = draw.choice(list(places(content)))
    node = content
    for key in path:
        node = node[key]
    value = node.pop(last) if isinstance(node, dict) and draw.random() < 0.3 else draw.choice(ODD)
    node[draw.choice(["../../x", "<b>", "a" * 1000, last]) if isinstance(node, dict) else last] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("ordinary", [False, True])
def test_whatever_the_files_hold_is_tabulated_or_named(tmp_path: Path, ordinary: bool) -> None:
    draw = random.Random(int(ordinary))
    for number in range(25):
        runs = tmp_path / str(number)
        for name, value in (("a", 0.1), ("b", 0.3)):
            if ordinary:
                plain_run(runs / name, value, {"experiment": None, "overrides": ["mask.dilate=1"]})
            else:
                make_run(runs / name, name, {"tave": {"residue": value}, "patent": {"residue": 0.5}})
        failure = {"failed": [{"case": "z", "method": "tave", "error": "no clip"}]}
        (runs / "failed.json").write_text(json.dumps(failure))
        damage(draw.choice(sorted(runs.rglob("*.json"))), draw)
        try:
            found = split_methods(read_results(find(str(runs)), find(str(runs), "failed.json")))
            board = as_json(found, list(found.metrics), "tave")
            text = markdown(board | {"notices": {"Left out": found.left_out}}, "t", "") + page(
                board | {"notices": {}}, [], "t"
            )
            assert "<b>" not in text.partition("</table>")[2] and "\n# y" not in text
            json.dumps(board, allow_nan=False)
        except (EvalError, FileError) as error:
            assert "\n" not in str(error) and str(runs) in str(error)


def test_what_cannot_be_read_is_named_and_the_rest_is_tabulated(runs: Path, tmp_path: Path) -> None:
    (runs / "a" / "metrics.json").write_text("[]")
    label(runs / "b/edits/patent", "b", ["no", "name"])  # type: ignore[arg-type]
    make_run(runs / "d", "d", {"tave": {"residue": float("nan")}, "patent": {"residue": 0.4}})
    page_path, board = show(runs, tmp_path / "out")
    assert {(mean["method"], mean["n"]) for mean in board["means"] if mean["group"] == "all"} == {
        ("tave", 2),
        ("patent", 1),
    }
    lines = "\n".join(board["left_out"])
    assert all(f"{runs / name}" in lines for name in ("a/metrics.json", "b/edits/patent/edit.json", "d/metrics.json"))
    assert "## Left out" in page_path.with_suffix(".md").read_text()


@pytest.mark.parametrize("name", ["../../secret", "/etc", "..", "a/b"])
def test_an_edits_name_never_leads_out_of_its_run(runs: Path, tmp_path: Path, name: str) -> None:
    record = json.loads((runs / "a" / "metrics.json").read_text())
    record["edits"][name] = {"residue": 0.1}
    (runs / "a" / "metrics.json").write_text(json.dumps(record))
    assert all(name not in json.dumps(mean) for mean in show(runs, tmp_path / "out")[1]["means"])


def test_a_run_with_links_out_of_it_is_left_out(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "private.mp4").write_bytes(b"mine")
    (runs / "a/edits/tave/edited.mp4").unlink(missing_ok=True)
    (runs / "a/edits/tave/edited.mp4").symlink_to(tmp_path / "private.mp4")
    board = show(runs, tmp_path / "out")[1]
    assert any("edited.mp4 is a link" in line for line in board["left_out"])
    assert {mean["n"] for mean in board["means"] if mean["group"] == "all"} == {2}


NASTY = "=cmd()|<img src=x onerror=alert(1)>\n# head\x1b[31m [a](javascript:x) `c` *b*"


def test_names_are_text_in_every_file(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(runs / "d", "d", {"odd": {"residue": 0.3}})
    label(runs / "d/edits/odd", "d", "odd", benchmark={"case": NASTY, "method": NASTY, "group": [NASTY], "seed": 1})
    (runs / "failed.json").write_text(json.dumps({"failed": [{"case": NASTY, "method": NASTY, "error": NASTY}]}))
    page_path, _ = show(runs, tmp_path / "out")
    shown = markdown_it(page_path.with_suffix(".md").read_text())
    assert shown == set()
    text = page_path.read_text().partition("</style>")[2]
    assert "<img src=x" not in text and "\x1b" not in text + capsys.readouterr().out
    with page_path.with_name("cases.csv").open(newline="") as source:
        assert all(not cell.startswith(("=", "+", "-", "@")) for line in csv.reader(source) for cell in line)


def markdown_it(text: str) -> set[str]:
    """What a name has become in Markdown: an image, a link, code or emphasis that no table has itself."""
    bare = re.sub(r"\\.", "", text.partition("## Ids")[0])
    marks = {"img": "<img", "a": "](", "code": "`", "em": "*b*", "head": "\n# head"}
    return {name for name, mark in marks.items() if mark in bare}
