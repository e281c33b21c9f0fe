"""A run folder from somewhere else: nothing in it is run, and nothing is written outside of it and the command's cache.

Whoever wrote it wrote its SHA256SUMS too, so that digests are no help.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from runs import call, options

import tave.benchmark
import tave.edit
import tave.verify
from tave.cache import read_tensors, write_tensors
from tave.edit import options_of
from tave.files import FileError, file_digest, read_json, write_json
from tave.locks import claimed
from tave.record import SUMS, read_sums
from tave.train import train


class Payload:
    """An object that writes the file MARKER when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.fixture(scope="module")
def made(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the edit ``suv``. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    return train(options(clip, folder / "cache", "metrics.enabled=false"), folder / "run", show=False)


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stranger's ``run``; a command runs in ``here``, and what is run writes ``ran``."""
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def sign(run: Path) -> None:
    """Write the digests anew."""
    for folder in (*run.glob("edits/*"), run):
        lines = [f"{file_digest(folder / name)}  {name}\n" for name in read_sums(folder) if (folder / name).is_file()]
        (folder / SUMS).write_text("".join(lines))


def outside(world: Path) -> dict[str, bytes | None]:
    """Every file and folder, those of the run and of the command's cache left out."""
    found = {path.relative_to(world): path for path in world.rglob("*")}
    kept = {name: path for name, path in found.items() if name.parts[0] not in ("run", "cache")}
    return {str(name): path.read_bytes() if path.is_file() else None for name, path in kept.items()}


def ask(world: Path, clip: Path, *words: str) -> int:
    """Exit code of another edit of the run, as a user asks for it."""
    given = [f"video.target_image={clip / 'target.png'}", "video.target_prompt=a red car", "video.edit=car"]
    cheap = [f"cache={world / 'cache'}", "metrics.enabled=false", "mask.region=whole", "correction.enabled=false"]
    return call(tave.edit.main, f"run={world / 'run'}", *given, *cheap, *words)


def put(world: Path, key: str, value: Any) -> None:
    """Set one option of ``run.json``."""
    record = read_json(world / "run/run.json")
    *groups, last = key.split(".")
    place = record["config"]
    for group in groups:
        place = place.setdefault(group, {})
    place[last] = value
    write_json(world / "run/run.json", record)
    sign(world / "run")


def loads_a_pickle(world: Path) -> None:
    (world / "evil.pt").write_bytes(pickle.dumps(Payload(world / "ran")))
    put(world, "backbone._target_", "torch.load")
    put(world, "backbone.f", str(world / "evil.pt"))
    put(world, "backbone.weights_only", False)


def loads_an_array(world: Path) -> None:
    np.save(world / "evil.npy", np.array([Payload(world / "ran")], dtype=object), allow_pickle=True)
    put(world, "logger.evil", {"_target_": "numpy.load", "file": str(world / "evil.npy"), "allow_pickle": True})


def loads_from_a_hub(world: Path) -> None:
    (world / "repository").mkdir()
    code = f"import pathlib\npathlib.Path({str(world / 'ran')!r}).touch()\ndef model(**_): pass\n"
    (world / "repository/hubconf.py").write_text(code)
    hub = {"_target_": "torch.hub.load", "repo_or_dir": str(world / "repository"), "source": "local", "model": "model"}
    put(world, "logger.evil", hub)


def plugs_into_the_trainer(world: Path) -> None:
    put(world, "trainer.plugins", [{"_target_": "pathlib.Path.touch", "self": str(world / "ran")}])
    put(world, "trainer.strategy", {"_target_": "pathlib.Path.touch", "self": str(world / "ran")})


def takes_the_folders_module(world: Path) -> None:
    (world / "here/evil.py").write_text(
        f"import pathlib\npathlib.Path({str(world / 'ran')!r}).touch()\nLogger = dict\n"
    )
    put(world, "logger.evil", {"_target_": "evil.Logger"})


def trusts_remote_code(world: Path) -> None:
    network = world / "run/judge"
    network.mkdir()
    code = f"import pathlib\npathlib.Path({str(world / 'ran')!r}).touch()\n"
    (network / "code.py").write_text(code)
    text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    write_json(network / "open_clip_config.json", {"model_cfg": {"embed_dim": 8, "text_cfg": text}})
    write_json(network / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}})
    (network / "open_clip_model.safetensors").touch()
    write_json(network / "classes.json", {})
    put(world, "metrics.judge", str(network))
    put(world, "metrics.clip", str(network))
    put(world, "reference.segmenter", str(network))
    put(world, "reference.matte", "segmented")


def writes_a_profile(world: Path) -> None:
    profiler = {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": str(world), "filename": "ran"}
    put(world, "trainer.profiler", profiler)
    put(world, "trainer.default_root_dir", str(world / "out"))


def writes_logs_and_cache_elsewhere(world: Path) -> None:
    put(world, "cache", str(world / "out"))
    put(world, "logger.csv", {"name": "../../../out"})
    put(world, "logger.tensorboard", {"save_dir": str(world / "out")})


ATTACKS: list[Callable[[Path], None]] = [
    loads_a_pickle,
    loads_an_array,
    loads_from_a_hub,
    plugs_into_the_trainer,
    takes_the_folders_module,
    trusts_remote_code,
    writes_a_profile,
    writes_logs_and_cache_elsewhere,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_what_run_json_names_is_not_run(
    world: Path, clip: Path, attack: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    attack(world)
    before = outside(world)
    code = ask(world, clip)
    printed = capsys.readouterr()
    assert code in (0, 1) and "Traceback" not in printed.err
    assert (world / "run/edits/car").exists() == (code == 0)
    if code:
        assert printed.err.splitlines()[-1].startswith("error: ")
    assert not (world / "ran").exists()
    assert outside(world) == before
    assert list((world / "run/logs").iterdir()) == [world / "run/logs/lightning_logs"] if code == 0 else True


def test_what_names_code_is_left_out_with_a_line(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    takes_the_folders_module(world)
    plugs_into_the_trainer(world)
    found = options_of(world / "run")
    (line,) = [message for message in caplog.messages if "left out" in message]
    assert "trainer.plugins.0._target_" in line and "logger.evil._target_" in line
    assert set(found.trainer) == {"accelerator", "devices", "precision", "deterministic", "log_every_n_steps"}
    assert found.logger == {"csv": {}}


@pytest.mark.slow
def test_interpolations_are_not_resolved(world: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of-the-user")
    before = (world / "run/run.json").read_bytes()
    for key in ("video.source_prompt", "video.name", "backbone.path", "backbone.name", "condition.negative_prompt"):
        put(world, key, "${oc.env:SECRET}")
        assert OmegaConf.select(options_of(world / "run"), key) == "${oc.env:SECRET}"
    (world / "run/run.json").write_bytes(before)
    for key in ("video.source_prompt", "video.name", "video.target_prompt", "logger.csv.name"):
        put(world, key, "${oc.env:SECRET}")
    assert ask(world, clip) == 0
    texts = [path.read_bytes() for path in (world / "run").rglob("*") if path.is_file()]
    assert not any(b"of-the-user" in text for text in texts)
    assert not list((world / "run").rglob("*of-the-user*"))


@pytest.mark.slow  # several runs
@pytest.mark.parametrize("name", ["edits", "logs", "metrics.json", "edits/suv", "edits/car"])
def test_links_out_of_the_folder_are_refused(
    world: Path, clip: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there, link = world / "there", world / "run" / name
    there.mkdir()
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(there)
    before = outside(world)
    assert ask(world, clip) == 1
    assert f"{link} is a link to {there}, outside of the run folder" in capsys.readouterr().err
    assert call(tave.verify.main, str(world / "run")) == 1
    assert outside(world) == before


@pytest.mark.parametrize("command", ["train", "edit", "score"])
def test_links_named_as_claims_and_temporaries_lead_nowhere(
    world: Path, clip: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import tave.eval.score  # pyright: ignore[reportMissingImports]

    there, run = world / "there", world / "run"
    (there / "old").mkdir(parents=True)
    (there / "old/thesis.txt").write_text("the only copy")
    os.utime(there, (0, 0))
    if command != "train":
        (run / ".part-elsewhere-1-0-1").symlink_to(there)
    for name in ("run.json", "metrics.json", SUMS):
        with claimed(run / name):
            (place,) = run.glob(".lock-*")
        place.symlink_to(there / "old/thesis.txt")
        before = outside(world)
        if command == "train":
            with pytest.raises(FileError, match=r"is a link to .*thesis\.txt, outside of the run folder"):
                train(options(clip, world / "cache"), run, show=False)
        else:
            score = partial(call, tave.eval.score.main, f"run={run}", "judge=null")
            assert (ask(world, clip) if command == "edit" else score()) == 1
            assert "outside of the run folder" in capsys.readouterr().err
        place.unlink()
        assert outside(world) == before


def test_a_pipe_in_the_folder_does_not_hang(world: Path, clip: Path) -> None:
    (world / "run/source.mp4").unlink()
    os.mkfifo(world / "run/source.mp4")
    assert ask(world, clip) == 1


@pytest.mark.slow  # several runs
@pytest.mark.parametrize("name", ["tuned.safetensors", "trajectory.safetensors"])
def test_pickles_by_another_name_are_not_read(world: Path, clip: Path, name: str) -> None:
    torch.save({"a": Payload(world / "ran")}, world / "run" / name)
    sign(world / "run")
    ask(world, clip)
    assert not (world / "ran").exists()


@pytest.mark.slow  # several runs
@pytest.mark.parametrize("forged", ["trajectory", "tuned"])
def test_an_edit_of_a_forged_run_leaves_the_cache_of_honest_ones_as_it_is(
    world: Path, made: Path, clip: Path, forged: str
) -> None:
    path = world / f"run/{forged}.safetensors"
    tensors, about = read_tensors(path)
    write_tensors(path, {name: each + 0.7 if each.dim() else each for name, each in tensors.items()}, about)
    sign(world / "run")
    assert ask(world, clip, "mask.region=found", "video.target_prompt=a red suv") == 0
    honest = {path.name for path in (made.parent / "cache").glob("*.safetensors")}
    left = {path.name for path in (world / "cache").glob("*.safetensors")}
    assert left and not left & honest
    assert ask(world, clip, "mask.region=found", "video.target_prompt=a red suv", "mask.dilate=0.2") == 0
    assert {path.name for path in (world / "cache").glob("*.safetensors")} == left  # its own maps serve it again


@pytest.mark.parametrize("name", ["soft_mask.npz", "truth/truth.npz"])
def test_arrays_of_objects_are_not_read(world: Path, name: str) -> None:
    from tave.eval.score import score_run  # pyright: ignore[reportMissingImports]

    path = world / "run/edits/suv" / name
    with np.load(path) as stored:
        arrays = dict.fromkeys(stored.files, np.array([Payload(world / "ran")], dtype=object))
    np.savez(path, **arrays)  # type: ignore[arg-type]
    sign(world / "run")
    with pytest.raises(ValueError, match=r"can't be read as an npz archive"):
        score_run(world / "run", None)
    assert not (world / "ran").exists()


def test_weights_and_pictures_elsewhere_are_read_only_with_the_recorded_digest(
    world: Path, clip: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tave.eval.cases import read_cases  # pyright: ignore[reportMissingImports]

    put(world, "backbone", {"family": "unclip", "path": str(saved)})
    assert ask(world, clip) == 1
    assert "is from another backbone than the clip was tuned from" in capsys.readouterr().err
    private = Path(shutil.copy(clip / "target.png", world / "private.png"))
    edit = world / "run/edits/suv/edit.json"

    def missing(**changes: Any) -> str:
        write_json(edit, read_json(edit) | changes)
        sign(world / "run")
        (case,) = read_cases(world / "run")
        assert (case.request.image is None) == bool(case.request.missing)
        return case.request.missing

    assert not missing(target_image=str(private))
    assert not missing(matte=str(private), matte_sha256=file_digest(private))
    assert "the matte" in missing(matte_sha256=None) and "has changed" in missing(matte_sha256="0" * 64)
    assert "the target image" in missing(target_image=str(edit), matte=None)
    assert "no longer there" in missing(target_image="a")
    with pytest.raises(ValueError, match=r"edit\.json: target_image is no text"):
        missing(target_image=["a", "b"])


def test_networks_of_the_metrics_are_the_commands(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    trusts_remote_code(world)
    put(world, "reference.matte", "auto")
    found = options_of(world / "run")
    assert (found.metrics.judge, found.metrics.clip, found.reference.segmenter) == ("shipped", None, None)
    assert sum("left out: give it on the command line" in message for message in caplog.messages) == 2
    put(world, "metrics.clip", "vit-l-14")
    assert options_of(world / "run").metrics.clip == "vit-l-14"
    (world / "here/vit-l-14").mkdir()  # a folder of that name is a folder
    assert options_of(world / "run").metrics.clip is None


def test_a_leaderboard_reads_no_edit_outside_of_its_runs(world: Path) -> None:
    from tave.eval.runs import find, read_results  # pyright: ignore[reportMissingImports]

    shutil.copytree(world / "run/edits/suv", world / "private")
    write_json(world / "run/metrics.json", {"edits": {"../../private": {"residue": 1}}, "metrics": {}})
    sign(world / "run")
    found = read_results(find(str(world / "run")))
    assert not found.results and "'../../private' is no edit's name" in found.left_out[0]
