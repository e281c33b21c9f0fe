"""The command line: words as they are typed, errors in one line, help, entry points and the package's import guards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import tave
from tave import cli, keys
from tave.config import MethodOptions, OptionError
from tave.edit import changed

ROOT = Path(tave.__file__).parent.parent
CLIP = ["video=custom", "video.path=clip.mp4", "video.source_prompt=a bus"]


TEXTS = ["it's a bus, (white), größer: 50%", "clip (1).mp4", "a=b", "back\\slash\\", 'the "new" bus', "#1 = {x}"]


@pytest.mark.parametrize("text", [*TEXTS, "C:\\clips\\a b.mp4", "true", "3", "line\nbreak", " spaced "])
def test_paths_and_prompts_are_taken_as_they_are_typed(text: str) -> None:
    words = [f"video.path={text}", f"video.source_prompt={text}", f"video.edits.suv.matte={text}"]
    video = cli.compose_options("train", ["video=bus_to_suv", *words]).video
    assert (video.path, video.source_prompt, video.edits["suv"].matte) == (text, text, text)
    assert cli.compose_options("score/score", [f"run={text}"]).run == text


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("video.target_image=[a.png,b.png]", ["a.png", "b.png"]),
        ("video.target_image='a, b.png'", "a, b.png"),
        ("video.target_image=3", "3"),
        ("video.target_image=null", None),
        ("++video.target_image=a (1).png", "a (1).png"),
    ],
)
def test_lists_quotes_and_null_keep_their_meaning(word: str, value: Any) -> None:
    assert cli.compose_options("train", [*CLIP, word]).video.target_image == value


def test_options_by_name_are_made_and_changed_by_their_keys() -> None:
    words = ["define.wide={overrides: ['mask.dilate=0.1']}", "define.wide.oracle=true", "define.tave.oracle=true"]
    define = cli.compose_options("benchmark", words).define
    assert define["wide"] == MethodOptions(overrides=["mask.dilate=0.1"], oracle=True)
    assert define["tave"].oracle


def test_arguments_of_trainer_and_loggers_need_no_plus() -> None:
    options = cli.compose_options(
        "train", [*CLIP, "trainer.benchmark=true", "logger=[csv,wandb]", "logger.wandb.mode=online"]
    )
    assert options.trainer["benchmark"] is True
    assert list(options.logger) == ["csv", "wandb"]
    assert options.logger["wandb"]["mode"] == "online"
    assert cli.compose_options("train", [*CLIP, "logger=none"]).logger == {}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mask.dilat=0.1", "unknown option mask.dilat: did you mean mask.dilate?"),
        ("+mask.dilat=0.1", "unknown option mask.dilat: did you mean mask.dilate?"),
        ("guidance_scale=3", "unknown option guidance_scale: did you mean sampler.guidance_scale?"),
        ("+sedd=3", "unknown option sedd: did you mean seed?"),
        ("memry=8gb", "unknown option memry: did you mean memory?"),
        ("memory=9gb", "memory=9gb is not known: did you mean 8gb?"),
        ("video=bus_to_sv", "video=bus_to_sv is not known: did you mean bus_to_suv?"),
        ("tuning.steps=many", "tuning.steps=many: give a whole number"),
        ("mask.steps=3", "mask.steps: give a list, for example mask.steps=[0,1]"),
        ("metrics=3", "metrics is a group of options: give one of them, metrics.OPTION=VALUE"),
        ("mask.dilate=3", "mask.dilate=3.0 is out of range: set it between 0 and 0.5"),
        ("mask.threshold=best", "mask.threshold=best is not known: choose one of otsu, fixed, quantile"),
        ("trainer.precison=x", "unknown option trainer.precison: did you mean precision?"),
        ("backbone=folder", "backbone.path not set"),
        ("mask.dilate=(3", "mask.dilate=(3 can't be read"),
        ("experiment=null,patent", "experiment=null,patent: none can't be one of several choices"),
        ("video.source_prompt=\udcff", "video.source_prompt is no text in UTF-8"),
        ("mask.steps=0,1", "mask.steps=0,1 has several values: add -m"),
    ],
)
def test_a_wrong_word_is_refused_in_one_line_with_the_remedy(word: str, message: str) -> None:
    clip = [] if word.startswith("video=") else CLIP
    with pytest.raises(OptionError) as caught:
        cli.compose_options("train", [*clip, word])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_values_are_named_with_the_remedy() -> None:
    with pytest.raises(
        OptionError, match=r"video\.path, video\.source_prompt not set: choose a clip, .*video=bus_to_suv"
    ):
        cli.compose_options("train")
    with pytest.raises(OptionError, match=r"out, sweep not set: give out=\.\.\. \(folder for"):
        cli.compose_options("study/study")


def test_an_unknown_key_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "mine.yaml").write_text("# @package _global_\nmask: {dilat: 0.1}\n")
    with pytest.raises(OptionError, match=r"unknown option mask\.dilat: did you mean mask\.dilate"):
        cli.compose_options("train", ["video=mine", f"hydra.searchpath=[file://{tmp_path}]"])


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return cli.resolved(cli.compose_config("train", ["video=bus_to_suv", "memory=16gb", "mask.dilate=0.1"]))


def test_another_edit_keeps_what_it_does_not_change(recorded: dict[str, Any]) -> None:
    words = [
        "experiment=patent",
        "sampler.guidance_scale=3",
        "video.target_image=a (1).png",
        "video.target_prompt=it's",
    ]
    before, after = cli.typed(changed(recorded, [])), cli.typed(changed(recorded, words))
    assert (after.mask.dilate, after.mask.branches, after.sampler.guidance_scale) == (0.1, "separate", 3)
    assert (after.video.target_image, after.video.target_prompt) == ("a (1).png", "it's")
    assert (after.tuning, after.memory, after.backbone) == (before.tuning, before.memory, before.backbone)


def test_a_choice_of_memory_or_logger_replaces_the_runs(recorded: dict[str, Any]) -> None:
    after = cli.typed(changed(recorded, ["memory=full", "logger=[wandb]"]))
    assert (after.memory.weights, after.precision, list(after.logger)) == ("full", "32-true", ["wandb"])


@pytest.mark.parametrize(
    "word", ["tuning.steps=3", "seed=1", "experiment=st_attention_", "mask.dilat=1", "video.path=b"]
)
def test_what_the_tuning_decided_and_what_is_unknown_is_refused(recorded: dict[str, Any], word: str) -> None:
    with pytest.raises(OptionError, match=r"was decided when|is not known|unknown option"):
        changed(recorded, [word])


def test_a_record_of_another_version_is_refused(recorded: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="another version of tave"):
        changed({**recorded, "story": 1}, [])


def called(monkeypatch: pytest.MonkeyPatch, work: Callable[..., Any], *words: str) -> int:
    """Exit code of tave.train's command line with ``work`` in its place."""
    monkeypatch.setattr(sys, "argv", ["tave-train", *words])
    try:
        cli.entry_point("train", "train", work)()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failing(error: BaseException) -> Callable[..., Any]:
    def work(options: Any, context: cli.Context) -> None:
        raise error

    return work


def test_work_gets_options_and_how_they_were_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    got: list[Any] = []
    words = ["video=bus_to_suv", "logger=wandb", "experiment=patent", "mask.dilate=0.1"]
    assert called(monkeypatch, lambda *given: got.extend(given), *words) == 0
    options, context = got
    assert (options.mask.dilate, options.mask.union) == (0.1, "none")
    assert context.folder.parent == tmp_path / "outputs" / "bus_to_suv"
    assert (context.experiment, context.overrides[-1]) == ("patent", "mask.dilate=0.1")
    assert context.config["mask"]["dilate"] == 0.1
    wandb = options.logger["wandb"]
    assert (wandb["name"], wandb["group"]) == ("bus_to_suv mask.dilate=0.1", "patent")
    assert wandb["tags"] == ["bus_to_suv", "roadside", "patent"]


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class SIGTERMException(SystemExit):
    """Named as Lightning's."""


def interrupted() -> BaseException:
    error = SystemExit(1)  # as Lightning's Trainer leaves on Ctrl-C
    error.__context__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("no edit: give one"), 1, "error: no edit: give one"),
        (FileNotFoundError(2, "No such file", "a.mp4"), 1, "error: a.mp4: can't be used (No such file or directory)"),
        (OutOfMemoryError(), 1, "error: the GPU's memory is full: set memory="),
        (KeyboardInterrupt(), 130, "stopped"),
        (interrupted(), 130, "stopped"),
        (SIGTERMException(), 143, "stopped by SIGTERM"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_a_user_can_mend_ends_in_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, failing(error), "video=bus_to_suv") == code
    first, *rest = capfd.readouterr().err.splitlines()
    assert first.startswith("tave 0.3.0.dev0")
    assert [each[: len(line)] for each in rest] == [line]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_nothing_more_is_named_or_has_had_enough(unbuffered: str) -> None:
    command = [sys.executable, "-m", "tave.train", "--help"]
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: the standard output: can't be written (No space")
    reading, closed = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, env=env, check=False)
    os.close(closed)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="a bug"):
        called(monkeypatch, failing(TypeError("a bug")), "video=bus_to_suv")


@pytest.mark.slow  # several runs
def test_a_sweep_goes_on_after_a_failed_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def work(options: Any, context: cli.Context) -> None:
        if options.video.source_prompt == "a":
            raise ValueError("not this one")
        ran.append(context.folder.name)

    words = ["-m", "video=bus_to_suv", "video.source_prompt=a,b,b%", "hydra.sweep.dir=sweep"]
    assert called(monkeypatch, work, *words) == 1
    assert len(set(ran)) == 2  # one folder each, though `b` and `b%` have the same letters
    assert all(len(name) < 100 and (tmp_path / "sweep" / name).is_dir() for name in ran)
    errors = capfd.readouterr().err
    assert errors.count('video.source_prompt="a": not this one') == 2  # at once, and in the summary
    assert "error: 1 of 3 jobs failed, 2 succeeded" in errors
    first = list(ran)
    again = ["-m", "hydra.sweep.dir=sweep", "video.source_prompt=b%,'c, at night',b", "video=bus_to_suv", "logger=none"]
    assert called(monkeypatch, work, *again) == 0  # the sweep goes on in its folders, in another order and with more
    assert {ran[2], ran[4]} == {*first} and ran[3] not in first
    assert capfd.readouterr().err.splitlines()[1:] == ["all 3 jobs succeeded"]


def test_long_sentences_times_scales_have_a_folder_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sentence = "ein größerer grüner Geländewagen fährt bei Nacht über die alte steinerne Brücke nach Süden (2024)"
    ran: dict[str, tuple[str, float]] = {}

    def work(options: Any, context: cli.Context) -> None:
        ran[context.folder.name] = (options.video.edits["suv"].target_prompt, options.sampler.guidance_scale)
        assert context.folder.is_dir()

    words = [f"video.edits.suv.target_prompt={sentence},{sentence}!", "sampler.guidance_scale=3,5"]
    assert called(monkeypatch, work, "-m", "video=bus_to_suv", *words, "hydra.sweep.dir=sweep") == 0
    assert sorted(ran.values()) == [(text, scale) for text in (sentence, f"{sentence}!") for scale in (3, 5)]


def test_a_fault_of_the_program_in_a_sweep_is_shown_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(options: Any, context: cli.Context) -> None:
        if options.seed == 1:
            raise TypeError("a bug")

    assert called(monkeypatch, work, "-m", "video=bus_to_suv", "seed=1,2", "hydra.sweep.dir=sweep") == 1
    errors = capfd.readouterr().err
    assert "Traceback" in errors and "1 of 2 jobs failed, 1 succeeded" in errors
    assert "Error executing job" not in errors


def test_a_stopped_sweep_names_what_failed_before(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(options: Any, context: cli.Context) -> None:
        raise KeyboardInterrupt if options.seed == 2 else ValueError("not this one")

    assert called(monkeypatch, work, "-m", "video=bus_to_suv", "seed=1,2,3", "hydra.sweep.dir=sweep") == 130
    *_, verdict, line, stopped = capfd.readouterr().err.splitlines()
    assert verdict == "error: 1 of 1 jobs failed, 0 succeeded before the sweep was stopped"
    assert line == "  +video=bus_to_suv seed=1: not this one"
    assert stopped.startswith("stopped")


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (False, ["mask.dilate=3"]),
        (True, ["video.name=../../x", "mask.dilate=3"]),
        (False, ["-m", "seed=1,x"]),
        (True, ["-m", "mask.dilate=3,4"]),
    ],
)
def test_a_refused_command_leaves_what_was_there_and_no_empty_folder(
    there: bool, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if there:
        (tmp_path / "outputs" / "bus_to_suv").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert called(monkeypatch, failing(AssertionError()), "video=bus_to_suv", *words) == 1
    left = sorted(path for path in tmp_path.rglob("*") if path.name != "multirun.yaml")
    assert left == before or words[-1] == "mask.dilate=3,4"  # a sweep that has begun keeps Hydra's record
    assert sorted(tmp_path.parent.glob("x*")) == []


@pytest.mark.parametrize("name", ["../../x", "größer (1)", "x" * 300])
def test_a_clips_name_never_leads_out_of_the_outputs(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    got: list[cli.Context] = []
    assert called(monkeypatch, lambda _, context: got.append(context), "video=bus_to_suv", f"video.name={name}") == 0
    (folder,) = {context.folder for context in got}
    assert folder.parent.parent == tmp_path / "outputs" and folder.is_dir()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("logger.csv.name=../../../out", "logger.csv.name='../../../out' can't be a folder name"),
        ("logger.csv.version=a/b", "logger.csv.version='a/b' can't be a folder name"),
        ("trainer.devices=5", "trainer.devices=5: a clip is edited on one device: set trainer.devices=1"),
        ("trainer.devices=1000000000", "a clip is edited on one device"),
        ("trainer.devices=[0,1]", "a clip is edited on one device"),
        ("trainer.num_nodes=2", "set trainer.num_nodes=1"),
        ("trainer.log_every_n_steps=x", "give a whole number"),
        ("trainer.deterministic=x", "give true or false"),
    ],
)
def test_arguments_that_would_fail_later_are_refused(word: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        cli.compose_options("train", ["video=bus_to_suv", "logger=csv", word])
    assert message in str(caught.value)


def test_a_study_sweeps_every_study_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "choices_of", lambda group: ["bus_to_suv", "study/a", "study/b"])
    assert OmegaConf.create({"clips": "${clips:study}"}).clips == "study/a,study/b"


def process(*arguments: str, cwd: Path | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **extra}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=cwd, timeout=120)


@pytest.mark.parametrize("name", sorted(cli.ROOTS))
def test_help_explains_every_option_on_a_line(name: str) -> None:
    text, root = cli.help_text(name), keys.ROOTS[name]
    lines = text.splitlines()
    assert any("python -m tave." in line for line in lines)
    for group in root.groups:
        assert any(line.startswith(f"  {group}: ") for line in lines)
    for key, entry in keys.options_of(root.kind):
        if not root.shown or {key, key.split(".")[0]} & set(root.shown):
            assert sum(f" {entry.metadata['help']}" in line for line in lines if line.startswith(f"  {key}=")) == 1, key


def test_help_shows_range_and_the_values_of_the_chosen_backbone() -> None:
    line = next(line for line in cli.help_text("train").splitlines() if "mask.dilate=" in line)
    assert line.split(maxsplit=1)[0] == "mask.dilate=0.04"
    assert "share of the latent grid" in line
    assert "(0 to 0.5)" in line
    assert "tuning.steps=4 " in cli.help_text("train", ["backbone=tiny"])


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--help"], "mask.dilate=0.04"),
        (["--version"], "tave 0.3.0.dev0"),
        (["-sc", "query=bash"], "memory=8gb"),
        (["video=bus_to_suv", "mask.dilate=3"], ""),
    ],
)
def test_quick_answers_import_nothing_slow(words: list[str], answer: str) -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print([m for m in sys.modules if m in ('torch', 'lightning')]));"
        f"sys.argv = ['tave-train', *{words}]; from tave.cli import entry_point; entry_point('train', 'train', None)()"
    )
    started = time.perf_counter()
    done = process("-c", code, COMP_LINE="tave-train memory=8", COMP_POINT="19")
    assert time.perf_counter() - started < 10  # about 1 s on an idle machine
    assert answer in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_working_folders_own_modules_are_never_run(tmp_path: Path) -> None:
    """A checkout has eval/ and pyproject.toml beside the package; `python -m tave.probe` runs in another folder."""
    checkout, folder = tmp_path / "checkout", tmp_path / "folder"
    for name in ("tave", "eval"):
        (checkout / name).mkdir(parents=True)
    for name in ("__init__", "interrupts"):
        shutil.copy(ROOT / "tave" / f"{name}.py", checkout / "tave")
    (checkout / "pyproject.toml").touch()
    (checkout / "eval" / "__init__.py").write_text("from . import score\n")
    (checkout / "eval" / "score.py").write_text("print('score of the checkout')\n")
    (checkout / "tave" / "probe.py").write_text("import random, wandb\nfrom tave.eval import score\n")
    folder.mkdir()
    for name in ("eval", "wandb", "random"):
        (folder / f"{name}.py").write_text(f"print('{name} of the folder')\n")
    done = process("-m", "tave.probe", cwd=folder, PYTHONPATH=str(checkout))
    assert (done.stdout, done.stderr) == ("score of the checkout\n", "")


def test_another_programs_path_is_left_alone() -> None:
    code = "import sys; sys.argv[0] = '-m'; sys.orig_argv = ['python', '-m', 'other']; before = list(sys.path)"
    assert process("-c", f"{code}; import tave; print(sys.path == before)").stdout.strip() == "True"


def test_public_names_are_listed_and_import_nothing_slow() -> None:
    code = (
        "import sys, tave; print(set(tave.__all__) <= set(dir(tave)), 'torch' in sys.modules, 'hydra' in sys.modules)"
    )
    assert process("-c", code).stdout.split() == ["True", "False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tave.nothing
