"""SHA256SUMS in run folders, and the closed list of values that a later command takes from run.json."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from runs import call, evaluations, figures_of, options

import tave.edit
import tave.record
from tave.api import EditedClip, TunedClip
from tave.cli import typed
from tave.config import CorrectionOptions
from tave.edit import options_of
from tave.files import FileError, file_digest, read_json, write_json
from tave.record import (
    SUMS,
    begin_record,
    changed_metrics,
    check_links,
    check_record,
    read_metrics,
    read_sums,
    recorded,
    rewriting,
    unlisted,
)
from tave.train import train


@pytest.fixture(scope="module")
def made(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the edit ``suv``. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    return train(options(clip, folder / "cache"), folder / "run", show=False)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made.parent / "cache", tmp_path / "cache")
    return Path(shutil.copytree(made, tmp_path / "run"))


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def ask(run: Path, clip: Path, *words: str) -> int:
    """Exit code of another edit of the run."""
    given = [f"video.target_image={clip / 'target.png'}", "video.target_prompt=a red car", "video.edit=car"]
    cheap = [f"cache={run.parent / 'cache'}", "logger=none", "metrics.enabled=false"]
    return call(tave.edit.main, f"run={run}", *given, *cheap, *words)


# ---- SHA256SUMS ------------------------------------------------------------------------------------------------------


def test_a_run_and_its_edits_list_every_file_that_is_read_later(made: Path) -> None:
    for folder, left in ((made, {"edits/suv/SHA256SUMS"}), (made / "edits/suv", set())):
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        expected = files if folder != made else {name for name in files if "/" not in name} | left
        assert read_sums(folder) == {name: file_digest(folder / name) for name in expected - {SUMS}}


@pytest.mark.parametrize(
    "name", ["run.json", "source.mp4", "tuned.safetensors", "trajectory.safetensors", "metrics.json"]
)
def test_an_edit_of_a_changed_run_is_refused_by_name(
    run: Path, clip: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run / name, 2000 if name.endswith("s") else 20)
    assert ask(run, clip) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {run / name} has changed since it was made") and "copy it again" in line
    assert [path.name for path in (run / "edits").iterdir()] == ["suv"]


def test_a_changed_edit_is_neither_measured_nor_shown(run: Path) -> None:
    from tave.eval.score import score_run  # pyright: ignore[reportMissingImports]

    flip(run / "edits/suv/network.mp4")
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(FileError, match=r"network\.mp4 has changed"):
        score_run(run, None)
    with pytest.raises(FileError, match=r"network\.mp4 has changed"):
        _ = EditedClip(run / "edits/suv").frames
    assert (run / "metrics.json").read_bytes() == before
    flip(run / "source.mp4")
    with pytest.raises(FileError, match=r"source\.mp4 has changed"):
        _ = TunedClip(run).frames


def test_the_same_command_makes_a_changed_edit_again(
    run: Path, clip: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "edits/suv/soft_mask.npz"
    flip(run / name)
    train(options(clip, run.parent / "cache"), run, show=False)
    assert any("soft_mask.npz has changed" in message for message in caplog.messages)
    assert (run / name).read_bytes() == (made / name).read_bytes()
    check_record(run)
    check_record(run / "edits/suv")
    assert figures_of(run) == figures_of(made)


@pytest.mark.slow  # several runs
@pytest.mark.parametrize("name", ["metrics.json", "round_trip.mp4", "run.json", "trajectory.safetensors"])
def test_a_kill_between_a_file_and_its_digest_leaves_a_run_that_goes_on(run: Path, clip: Path, name: str) -> None:
    """As after SIGKILL: nothing that follows the file's own writing has happened."""
    block = rewriting(run, name)
    block.__enter__()  # and never the end
    content = (run / name).read_bytes()
    if name.endswith(".json"):
        write_json(run / name, {**read_json(run / name), "more": 1})
    assert unlisted(run) == [name]
    assert ask(run, clip) == 0
    assert not unlisted(run)
    check_record(run)
    assert name.endswith(".json") or (run / name).read_bytes() == content


def test_of_two_processes_neither_records_what_the_other_has_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who ends its own file also records products that the record lacks, here the one that the other is writing."""
    (tmp_path / "metrics.json").write_text("{}")
    begin_record(tmp_path)
    other, claim = rewriting(tmp_path, "metrics.json"), tave.record.claimed
    other.__enter__()

    def last(*given: Any) -> Any:
        monkeypatch.setattr(tave.record, "claimed", claim)
        (tmp_path / "metrics.json").write_text('{"edits": {}}')
        other.__exit__(None, None, None)
        return claim(*given)

    with rewriting(tmp_path, "run.json"):
        (tmp_path / "run.json").write_text("{}")
        monkeypatch.setattr(tave.record, "claimed", last)
    check_record(tmp_path)
    assert read_sums(tmp_path).keys() == {"metrics.json", "run.json"}


def test_a_file_that_another_process_writes_under_a_check_has_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digests were read before, the content is read after another process wrote both."""
    (tmp_path / "metrics.json").write_text("{}")
    begin_record(tmp_path)
    digest, times = tave.record.file_digest, iter(range(3))

    def late(path: Path) -> str:
        if (number := next(times, None)) is not None:
            with monkeypatch.context() as whole:
                whole.setattr(tave.record, "file_digest", digest)
                with rewriting(tmp_path, path.name):
                    path.write_text(f'{{"edits": {{"a": {{"b": {number}}}}}}}')
        return digest(path)

    monkeypatch.setattr(tave.record, "file_digest", late)
    check_record(tmp_path)
    assert next(times, None) is None
    (tmp_path / "metrics.json").write_text('{"edits": {}}')
    with pytest.raises(FileError, match="has changed since it was made"):
        check_record(tmp_path)


def test_figures_that_are_being_written_are_not_recorded_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who ends its own file in the meantime would record their old content, and a reader then refuse the new one."""
    (tmp_path / "metrics.json").write_text("{}")
    begin_record(tmp_path)
    write = tave.record.write_json

    def with_others(path: Path, content: Any) -> None:
        with rewriting(tmp_path, "run.json"):
            (tmp_path / "run.json").write_text("{}")
        write(path, content)
        assert read_metrics(tmp_path)["edits"] == {"a": {"residue": 1}}

    monkeypatch.setattr(tave.record, "write_json", with_others)
    with changed_metrics(tmp_path) as metrics:
        metrics["edits"] = {"a": {"residue": 1}}
    check_record(tmp_path)
    assert read_sums(tmp_path).keys() == {"metrics.json", "run.json"}


def test_a_kill_between_an_edit_and_its_digest_costs_nothing(run: Path, clip: Path) -> None:
    block = rewriting(run, f"edits/suv/{SUMS}")
    block.__enter__()
    with evaluations() as seen:
        train(options(clip, run.parent / "cache"), run, show=False)
    assert not seen and not unlisted(run)
    check_record(run)


def test_a_block_that_fails_leaves_the_record_of_what_is_there(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"edits": {}})
    begin_record(tmp_path)
    before = (tmp_path / SUMS).read_bytes()
    with pytest.raises(RuntimeError, match="no space"), rewriting(tmp_path, "metrics.json"):
        raise RuntimeError("no space")
    assert (tmp_path / SUMS).read_bytes() == before


def test_figures_that_are_written_at_once_are_all_kept(tmp_path: Path) -> None:
    begin_record(tmp_path)

    def add(number: int) -> None:
        with changed_metrics(tmp_path) as metrics:
            metrics["edits"] = metrics.get("edits", {}) | {f"e{number}": {"residue": number}}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert read_metrics(tmp_path)["edits"].keys() == {f"e{number}" for number in range(8)}
    assert sorted(path.name for path in tmp_path.iterdir()) == [SUMS, "metrics.json"]


@pytest.mark.parametrize("line", ["cut", f"{'0' * 64}  ../other", f"{'0' * 64}  /etc/passwd", f"{'g' * 64}  a"])
def test_a_damaged_record_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / SUMS).write_text(f"{line}\n")
    with pytest.raises(FileError, match=r"SHA256SUMS is damaged at"):
        check_record(tmp_path, ["run.json"])


def test_a_folder_without_a_record_stays_without(tmp_path: Path) -> None:
    with changed_metrics(tmp_path) as metrics:
        metrics["edits"] = {"suv": {}}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    check_record(tmp_path, ["metrics.json"])


def test_links_that_stay_inside_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "run/logs").mkdir(parents=True)
    (tmp_path / "run/latest").symlink_to("logs")
    (tmp_path / "alias").symlink_to("run")
    check_links(tmp_path / "run")
    check_links(tmp_path / "alias")
    os.mkfifo(tmp_path / "run/logs/pipe")
    with pytest.raises(FileError, match=r"pipe is neither a file nor a folder"):
        check_links(tmp_path / "run")


# ---- run.json --------------------------------------------------------------------------------------------------------


def test_an_edit_has_the_options_of_its_run_and_the_places_of_its_command(clip: Path, tmp_path: Path) -> None:
    words = ["mask.dilate=0.1", "seed=7", "memory=16gb", "tuning.lr=1e-3", "logger=wandb"]
    given = options(clip, tmp_path / "theirs", *words)
    config = asdict(given) | {"trainer": given.trainer | {"benchmark": True}}
    write_json(tmp_path / "run.json", {"config": config})
    found = typed(options_of(tmp_path))
    for group in ("condition", "inflation", "tuning", "inversion", "mask", "correction", "sampler", "memory", "seed"):
        assert getattr(found, group) == getattr(given, group), group
    assert found.precision == given.precision == "bf16-mixed"
    assert (found.backbone, found.reference) == (given.backbone, given.reference)
    assert isinstance(found.correction, CorrectionOptions)
    assert (found.cache, found.logger, found.video.edits) == ("outputs/cache", {"csv": {}}, {})
    assert "benchmark" not in found.trainer
    chosen = typed(options_of(tmp_path, [f"cache={tmp_path}", "logger=none", "trainer.benchmark=true", "memory=full"]))
    assert (chosen.cache, chosen.logger, chosen.trainer["benchmark"]) == (str(tmp_path), {}, True)
    assert (chosen.precision, chosen.memory.weights) == ("32-true", "full")


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("mask", "dilate", "0.1"),
        ("mask", "dilate", True),
        ("mask", "dilate", 10**400),
        ("mask", "steps", [0, "1"]),
        ("mask", "steps", {"0": 1}),
        ("tuning", "steps", 1.5),
        ("tuning", "steps", None),
        ("tuning", "steps", 10**30),
        ("sampler", "composite", 1),
        ("backbone", "path", ["a"]),
        ("backbone", "sha256", {"unet": [1]}),
        ("backbone", "_target_", "torch.load"),
        ("video", "frames", "8"),
        ("condition", "negative_prompt", 3),
        ("reference", "other", 1),
        ("trainer", "precision", {"_target_": "x"}),
    ],
)
def test_a_value_of_another_type_or_an_unknown_key_is_refused(
    made: Path, tmp_path: Path, group: str, key: str, value: Any
) -> None:
    record = read_json(made / "run.json")
    record["config"][group][key] = value
    write_json(tmp_path / "run.json", record)
    with pytest.raises(FileError, match=rf"run\.json: {group}\.{key}.*tune again") as refused:
        recorded(tmp_path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_a_value_out_of_range_is_refused(made: Path, tmp_path: Path) -> None:
    record = read_json(made / "run.json")
    record["config"]["mask"]["dilate"] = 3
    write_json(tmp_path / "run.json", record)
    with pytest.raises(ValueError, match=r"mask\.dilate=3\.0 is out of range"):
        typed(options_of(tmp_path))


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", ".hidden", "a/b", ""])
def test_an_edit_whose_name_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "metrics.json", {"edits": {name: {"residue": 1}}})
    with pytest.raises(FileError, match=r"is no edit's name"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999"])
def test_figures_that_are_not_finite_are_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(f'{{"edits": {{"suv": {{"residue": {text}}}}}}}')
    with pytest.raises(FileError, match=r"metrics\.json: edits\.suv\.residue is not finite: delete it"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("content", [{"edits": []}, {"edits": {"suv": 3}}, {"metrics": {"residue": "id"}}])
def test_figures_of_another_form_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    write_json(tmp_path / "metrics.json", content)
    with pytest.raises(FileError, match=r"metrics\.json: \w+ is no list of figures by name: delete it"):
        read_metrics(tmp_path)
