"""A run folder is measured from its files alone: the right answer scores best, the source worst."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import eval.judge
from eval.cases import read_cases
from eval.judge import Judge
from eval.regions import GUARD, grow
from eval.score import Toolbox, main, merge_metrics, score_edits, score_run
from tave.video import write_image, write_mask_video, write_video
from tests.test_eval_judge import CLASSES, ColourEye

FRAMES, HEIGHT, WIDTH, MY, MX = 3, 32, 64, 2, 8
GREY, BLUE, RED = (96, 96, 96), (0, 0, 255), (255, 0, 0)


def clip(box: tuple[slice, slice] | None = None, colour: tuple[int, int, int] = GREY) -> np.ndarray:
    """Grey frames with a box, ``f H W 3`` uint8."""
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), GREY, dtype=np.uint8)
    if box:
        frames[:, box[0], box[1]] = colour
    return frames


def pixels(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1


def region(box: tuple[slice, slice]) -> np.ndarray:
    inside = np.zeros((FRAMES, HEIGHT, WIDTH), dtype=bool)
    inside[:, box[0], box[1]] = True
    return inside


OLD, NEW = (slice(8, 20), slice(16, 44)), (slice(12, 20), slice(20, 36))
SOURCE, IDEAL = clip(OLD, BLUE), clip(NEW, RED)


def write_edit(run: Path, name: str, frames: np.ndarray) -> None:
    folder = run / "edits" / name
    write_video(folder / "edited.mp4", pixels(frames), 8, lossless=True)
    cells = region(OLD)[:, ::4, ::4].astype(np.uint8)
    alpha = region((slice(6, 22), slice(14, 46))).astype(np.uint8) * 255
    np.savez(folder / "soft_mask.npz", soft=cells.astype(np.float32), binary=cells, mask=cells, alpha=alpha)
    layer = np.zeros((FRAMES, HEIGHT + 2 * MY, WIDTH + 2 * MX, 4), dtype=np.uint8)
    layer[:, 12 + MY : 20 + MY, 20 + MX : 36 + MX] = (*RED, 255)
    occluder = np.zeros((FRAMES, HEIGHT, WIDTH, 4), dtype=np.uint8)
    arrays = {"source": SOURCE, "ideal": IDEAL, "background": clip(), "target_layer": layer, "occluder": occluder}
    (folder / "truth").mkdir()
    for name, box in (("source", OLD), ("target", NEW)):
        inside = region(box)
        arrays |= {f"{name}_mask": inside, f"{name}_shadow": np.zeros_like(inside), f"{name}_counted": inside[1:]}
        arrays[f"{name}_motion"] = np.zeros((FRAMES - 1, 2, HEIGHT, WIDTH), np.float16)
    arrays |= {"target_instances": region(NEW)[None], "target_yaws": region(NEW)[:, None]}
    np.savez(folder / "truth/truth.npz", **arrays)  # type: ignore[arg-type]
    record = {
        "target": {"vehicle": "car", "color": "red", "accent": "white", "place": "city", "pattern": "plain"},
        "target_inside": [1.0, 0.9, 0.2],
        "still_camera": True,
    }
    (folder / "truth/truth.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose edits are the right answer, the untouched source and the right answer two pixels to the left."""
    run = tmp_path_factory.mktemp("drawn")
    write_video(run / "source.mp4", pixels(SOURCE), 8, lossless=True)
    write_edit(run, "ideal", IDEAL)
    write_edit(run, "source", SOURCE)
    write_edit(run, "beside", clip((slice(12, 20), slice(18, 34)), RED))
    (run / "edits" / ".next.partial").mkdir()
    (run / "metrics.json").write_text(json.dumps({"reconstruction_psnr": 31.5, "edits": {"ideal": {"note": 1}}}))
    return run


@pytest.fixture
def run(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "run"))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder's name; whatever lies there, the judge sees the mean colour of a crop."""
    monkeypatch.setattr(eval.judge, "load_judge", lambda folder: Judge(ColourEye(), CLASSES))
    return Path("judge")


def test_the_right_answer_scores_best(run: Path, judge: Path) -> None:
    edits = score_run(run, judge)
    scores, source, beside = edits["ideal"], edits["source"], edits["beside"]
    kinds = [f"judge_{kind}_accuracy" for kind in ("vehicle", "color", "pattern")]
    ones = ["mask_area_ratio", "mask_recall", "mask_iou_union", "object_presence", "ideal_ssim", "ideal_ssim_aligned"]
    ones += ["background_ssim", "background_ssim_outside_mask", "frame_consistency_adjacent", "frame_consistency_pairs"]
    ones += [*kinds, *(f"{kind}_ceiling" for kind in kinds), "judge_pattern_accuracy_floor"]
    capped = ["background_psnr_outside_mask", "background_psnr", "ideal_psnr", "ideal_psnr_aligned"]
    zeros = ["residue", "judge_vehicle_accuracy_floor", "judge_color_accuracy_floor", "warp_error_object"]
    expected = dict.fromkeys(ones, 1) | dict.fromkeys(capped, 100) | dict.fromkeys(zeros, 0) | {"judge_frames": 2}
    assert scores["ideal_shift"] == [0, 0]
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert source["residue"] == 1 and source["background_psnr"] == 100 and source["ideal_psnr"] < 10
    assert all(source[kind] == source[f"{kind}_floor"] for kind in kinds)
    assert (beside["ideal_psnr_aligned"], beside["ideal_shift"]) == (100, [-2, 0]) and beside["ideal_psnr"] < 20
    metrics = json.loads((run / "metrics.json").read_text())  # joined with what the run has measured
    assert metrics["reconstruction_psnr"] == 31.5 and metrics["edits"]["ideal"].pop("note") == 1
    assert metrics["edits"] == edits and set(edits) == {"beside", "ideal", "source"}
    facts = metrics["metrics"]
    assert set(facts) == set(scores) and len({about["id"] for about in facts.values()}) == len(facts)
    residue = {"id": "residue/-/64x32/pixels of all frames pooled/v1", "higher_is_better": False, "unit": "share"}
    assert facts["residue"] == residue
    assert facts["mask_iou_union"]["id"] == "mask_iou_union/-/16x8/latent cells of all frames pooled/v1"


def resave(path: Path, **changes: np.ndarray | None) -> None:
    arrays = {**np.load(path), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]


def claim(path: Path, shape: str, suffix: str = ".npy") -> None:
    """An archive of three bytes an array, which says that each is of another shape."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("binary", "mask", "alpha"):
            archive.writestr(f"{name}{suffix}", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + b"abc")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no edits": (lambda run: shutil.rmtree(run / "edits"), r"has no edits/NAME folder"),
    "lost mask": (
        lambda run: (run / "edits/ideal/soft_mask.npz").unlink(),
        r"archive: No such file[^\[]*; make the edit",
    ),
    "cut mask": (lambda run: (run / "edits/ideal/soft_mask.npz").write_bytes(b"PK\3\4cut"), r"can't be read as an npz"),
    **{
        f"shape {shape}": (
            lambda run, shape=shape: claim(run / "edits/ideal/soft_mask.npz", shape),
            r"soft_mask\.npz can't be read as an npz archive: binary\.npy is shorter than its shape",
        )
        for shape in (f"({10**13}, 1, 1)", f"({2**40}, {2**40}, 1)", "(-1, 2, 2)")
    },
    "no array": (
        lambda run: claim(run / "edits/ideal/soft_mask.npz", "(3,)", suffix=""),
        r"soft_mask\.npz lacks alpha, binary, mask",
    ),
    "other size": (
        lambda run: resave(run / "edits/ideal/soft_mask.npz", alpha=np.zeros((FRAMES, 32, 32), np.uint8)),
        r"edited\.mp4 is 3 frames of 64x32, but .*soft_mask\.npz is 3 frames of 32x32",
    ),
    "other grid": (
        lambda run: resave(run / "edits/ideal/soft_mask.npz", mask=np.zeros((FRAMES, 7, 16), np.uint8)),
        r"ideal: a 64x32 picture can't be cut into 16x7",
    ),
    "other truth": (
        lambda run: resave(run / "edits/ideal/truth/truth.npz", ideal=IDEAL[:2]),
        r"truth\.npz: ideal has shape \(2, 32, 64, 3\), but the edited clip needs \(3, 32, 64, 3\)",
    ),
    "no facts": (lambda run: (run / "edits/ideal/truth/truth.json").write_text("{}"), r"truth\.json lacks target"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_named_and_nothing_is_written(run: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    damage(run)
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        score_run(run, None)
    assert "\n" not in str(caught.value)
    assert (run / "metrics.json").read_bytes() == before


def test_a_metric_has_one_id_in_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An id that changes for one edit drops the other edits' values with one warning."""
    path, facts = tmp_path / "metrics.json", {"unit": "share", "higher_is_better": False}
    merge_metrics(path, {"suv": {"residue": 0.5, "kept": 1}}, {"residue": {"id": "residue/v1", **facts}})
    merge_metrics(path, {"van": {"residue": 0.2}}, {"residue": {"id": "residue/v1", **facts}})
    assert not caplog.records
    merge_metrics(path, {"van": {"residue": 0.1}}, {"residue": {"id": "residue/v2", **facts}})
    assert [record.message for record in caplog.records] == [
        f"{path}: dropped suv.residue, measured under other ids; score the whole run again"
    ]
    stored = json.loads(path.read_text())
    assert stored["edits"] == {"suv": {"kept": 1}, "van": {"residue": 0.1}}
    assert stored["metrics"]["residue"]["id"] == "residue/v2"
    with pytest.raises(ValueError):
        merge_metrics(path, {"suv": {"residue": float("nan")}}, {})
    assert json.loads(path.read_text()) == stored and list(tmp_path.iterdir()) == [path]


def test_footage_is_not_measured_by_the_drawn_worlds_judge(run: Path, judge: Path) -> None:
    for folder in (run / "edits").glob("*/truth"):
        shutil.rmtree(folder)
    (run / "metrics.json").unlink()
    ask(run, "ideal")
    figures = score_run(run, judge, ["ideal"])["ideal"]
    assert figures["background_psnr_outside_mask"] == 100
    assert {"warp_error_in_mask", "gradient_energy_in_mask", "mask_temporal_iou_flow"} <= set(figures)
    assert not [name for name in figures if name.startswith(("judge", "ideal", "residue", "clip", "frame"))]
    scores = score_edits(run, Toolbox(judge), ["ideal"])
    assert any(note.endswith(": give clip=vit-l-14 (a name, or a folder)") for note in scores.notes["ideal"])
    assert not scores.warnings
    scores = score_edits(run, Toolbox(judge, clip="judge"), ["ideal"])
    assert "clip_text" in scores.edits["ideal"] and "judge_frames" not in scores.edits["ideal"]
    assert any("only seen drawn vehicles" in warning for warning in scores.warnings)


def ask(run: Path, name: str, **changes: object) -> None:
    """Write what an edit was asked for, as a run does."""
    image = run / "target.png"
    write_image(image, torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 12, 20))
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    record = {"target_prompt": "a red car", "source_prompt": "a blue bus", "target_image": str(image), "sha256": digest}
    (run / "edits" / name / "edit.json").write_text(json.dumps(record | changes))


def test_alignment_prefers_the_right_answer_and_only_an_unchanged_target_counts(run: Path, judge: Path) -> None:
    for name in ("ideal", "source"):
        ask(run, name)
    edits = score_run(run, judge, ["ideal", "source"])
    for name in ("clip_text", "clip_text_crop", "clip_image", "clip_image_crop"):
        assert edits["ideal"][name] > edits["source"][name]
        assert edits["source"][name] == pytest.approx(edits["source"][f"{name}_source"])
    assert (edits["ideal"]["frame_accuracy"], edits["source"]["frame_accuracy"]) == (1, 0)
    ask(run, "ideal", sha256="0" * 64)
    (case,) = read_cases(run, ["ideal"])
    assert case.request.image is None and "changed since the edit" in case.request.missing


def test_annotated_masks_replace_the_truth(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (run / "edits").glob("*/truth"):
        shutil.rmtree(folder)
    ids = torch.zeros(FRAMES + 1, HEIGHT, WIDTH)
    ids[1:][torch.from_numpy(region(OLD))] = 1  # the clip begins at the second picture
    for index, picture in enumerate(ids):
        write_image(tmp_path / "annotations" / f"{index:05d}.png", picture.expand(3, -1, -1) * 2 - 1)
    words = (f"run={run}", "judge=null", f"annotations={tmp_path / 'annotations'}")
    with pytest.raises(SystemExit):
        call(monkeypatch, *words)
    assert "run.json doesn't record how the clip was cropped" in capsys.readouterr().err
    video = {"path": "clip.mp4", "start": 1, "frames": FRAMES, "width": None, "height": None, "multiple": 8}
    (run / "run.json").write_text(json.dumps({"config": {"video": video}}))
    call(monkeypatch, *words)
    figures = json.loads((run / "metrics.json").read_text())["edits"]["ideal"]
    assert figures["mask_recall"] == figures["mask_iou_source"] == 1
    assert figures["mask_temporal_iou_flow_source"] == pytest.approx(1, abs=0.05)
    assert figures["background_psnr_outside_annotation"] == figures["background_psnr_outside_union"] == 100
    assert "background_psnr_outside_mask" not in figures and "warp_error_in_mask" not in figures


def test_the_background_is_compared_with_the_autoencoders(run: Path) -> None:
    """What the round trip loses, over the edit's own background pixels: noise within the object is no part of it."""
    assert not [name for name in score_run(run, None, ["ideal"])["ideal"] if name.endswith("_autoencoder")]
    source = pixels(SOURCE)
    far = ~grow(torch.from_numpy(region(OLD) | region(NEW)), GUARD)[:, None]
    lost = torch.randint(-9, 10, source.shape, generator=torch.Generator().manual_seed(0)) / 127.5
    write_video(run / "round_trip.mp4", torch.where(far, source + lost, -source), 8, lossless=True)
    expected = -10 * np.log10(float((lost / 2).square().mean(1)[far[:, 0]].mean()))
    figures = score_run(run, None, ["ideal"])["ideal"]
    assert figures["background_psnr_autoencoder"] == pytest.approx(expected, abs=1e-3)
    assert 0 < figures["background_ssim_autoencoder"] < figures["background_ssim"]


def test_bare_files_of_any_system(
    run: Path, judge: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(run, "ideal")
    inside = torch.from_numpy(region((slice(6, 22), slice(14, 46))))[:, None].float()
    write_mask_video(tmp_path / "mask.mp4", inside, 8)
    words = [f"edited={run}/edits/ideal/edited.mp4", f"source={run}/source.mp4", f"mask={tmp_path}/mask.mp4"]
    words += [f"target_image={run}/target.png", "source_prompt=a blue bus", "target_prompt=a red car", "clip=judge"]
    words += [f"out={tmp_path}/figures.json"]
    before = sorted(run.rglob("*"))
    call(monkeypatch, *words)
    stored = json.loads((tmp_path / "figures.json").read_text())
    figures = stored["edits"]["edited"]
    assert figures["background_psnr_outside_mask"] == 100
    assert figures["clip_text_in_mask"] > figures["clip_text_in_mask_source"]
    assert figures["clip_image"] > figures["clip_image_source"] and figures["frame_accuracy"] == 1
    assert figures["warp_error_in_mask"] == figures["warp_error_outside_mask"] == 0
    assert set(stored["metrics"]) == set(figures) and sorted(run.rglob("*")) == before
    printed = capsys.readouterr().out
    assert all(note in printed for note in ("background_lpips", "dino_image", "pickscore", "only seen drawn vehicles"))
    call(monkeypatch, *words[:2], "judge=null", f"out={tmp_path / 'few.json'}")
    assert json.loads((tmp_path / "few.json").read_text())["edits"]["edited"] == {}
    assert "give mask=..." in capsys.readouterr().out
    for out, reason in ((tmp_path, "a folder of this name"), (tmp_path / ("a" * 300), "a shorter name")):
        with pytest.raises(SystemExit), monkeypatch.context() as patched:
            patched.setattr("tave.eval.score.score_cases", lambda *_: pytest.fail("measured"))
            call(monkeypatch, *words[:-1], f"out={out}")
        assert reason in capsys.readouterr().err
    short = tmp_path / "short.mp4"
    write_video(short, torch.zeros(2, 3, 32, 32), 8)
    with pytest.raises(SystemExit):
        call(monkeypatch, f"edited={short}", words[1])
    refused = r"source\.mp4 is 3 frames of 64x32, but .*short\.mp4 is 2 frames of 32x32"
    assert re.search(refused, capsys.readouterr().err)


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.score", *words])
    main()


def test_the_entry_point_prints_figures_and_leaves_nothing_else(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    call(monkeypatch, "run=../run", "judge=null")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "beside" and lines[-1] == "../run/metrics.json"
    assert "  ideal_shift                                [-2, 0]  px" in lines
    assert any(line.startswith("  residue") and line.endswith("lower is better") for line in lines)
    assert any(line.startswith("  not measured: clip_text") for line in lines)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "error: run is missing: "),
        (("run=nowhere",), "error: there is no run folder nowhere: "),
        (("run=x", "mask=m.mp4"), "error: mask given beside run: "),
        (("edited=a.mp4", "source=b.mp4", "judge=null"), "error: a.mp4: no such file; "),
    ],
)
def test_the_entry_point_refuses_in_one_line(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, *words)
    assert caught.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("tave 0")]
    assert line.startswith(message)


def test_help_needs_none_of_the_heavy_libraries() -> None:
    """The entry points import them only for work."""
    heavy = "{'torch', 'torchmetrics', 'open_clip', 'matplotlib', 'lightning'}"
    code = f"import sys, eval.leaderboard, eval.score, eval.study; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
