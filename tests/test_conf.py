"""Every configuration composes and is checked; a wrong one fails by name, before anything runs."""

from __future__ import annotations

import ast
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from tave.config import CONF, PACKAGE, TrainOptions, typed
from tave.options import OptionError

CLIPS = sorted(p.stem for p in (CONF / "video").glob("*_to_*.yaml"))
GROUPS = (
    "reference",
    "inflation",
    "tuning",
    "inversion",
    "mask",
    "correction",
    "sampler",
    "trainer",
    "memory",
    "logger",
    "metrics",
)
CHOICES = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


def composed(*overrides: str, root: str = "train") -> TrainOptions:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose(root, list(overrides)))


@pytest.mark.parametrize("clip", CLIPS)
def test_named_clips_compose_and_their_files_are_there(clip: str) -> None:
    options = composed(f"+video={clip}")
    assert Path(options.video.path).is_file()
    (entry,) = options.video.requests().values()
    assert Path(entry.target_image).is_file()
    assert entry.truth is not None
    assert Path(entry.truth, "truth.npz").is_file()


BACKBONES = [f"backbone={path.stem}" for path in (CONF / "backbone").glob("*.yaml")]


@pytest.mark.parametrize("choice", [*CHOICES, *BACKBONES])
def test_every_choice_of_every_group_composes(choice: str) -> None:
    composed("+video=bus_to_suv", choice, *(["backbone.path=weights"] if choice == "backbone=folder" else []))


def named_choices() -> list[str]:
    """``key=value`` for every value that an option's own check spells out."""
    calls = [
        node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    found = [
        f"{call.args[0].value}={value.value}"
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "choice" and isinstance(call.args[0], ast.Constant)
        for value in (call.args[2].elts if isinstance(call.args[2], ast.Tuple) else [])
        if isinstance(value, ast.Constant) and "." in str(call.args[0].value)
    ]
    return sorted(found)


def test_every_named_choice_can_be_said_on_the_command_line() -> None:
    """The union's second kind was once called null, which the command line reads as nothing at all."""
    choices: dict[str, list[str]] = {}
    for said in named_choices():
        key, _, value = said.partition("=")
        choices.setdefault(key, []).append(value)
    assert "unconditional" in choices["mask.union"]
    apart = [[("memory.branches", value)] for value in choices.pop("memory.branches")]  # one doesn't go with reference.confine
    rounds = zip_longest(*([(key, value) for value in values] for key, values in choices.items()))  # one of each key at once
    for said in [*rounds, *apart]:
        together = dict(filter(None, said))
        # memory.weights=half goes with autocast alone
        given = [f"{key}={value}" for key, value in together.items()]
        options = composed("+video=bus_to_suv", "trainer.precision=bf16-mixed", *given)
        for key, value in together.items():
            group, name = key.split(".")
            assert getattr(getattr(options, group), name) == value


@pytest.mark.parametrize("experiment", sorted(p.stem for p in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_composes(experiment: str) -> None:
    if experiment.startswith("optuna_"):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="tave[optuna] is not installed")
    composed("+video=bus_to_suv", f"experiment={experiment}")


def test_several_loggers_are_a_list() -> None:
    options = composed("+video=bus_to_suv", "logger=[csv,wandb,tensorboard]", "logger.wandb.mode=disabled")
    assert list(options.logger) == ["csv", "wandb", "tensorboard"]
    assert options.logger["wandb"]["mode"] == "disabled"


def test_each_parameter_of_the_wandb_sweep_is_an_override() -> None:
    told: Any = OmegaConf.to_container(OmegaConf.load(CONF / "sweep" / "wandb.yaml"))
    name = told["metric"]["name"]
    assert name.removeprefix("figure/") in OmegaConf.load(CONF / "study" / "study.yaml").metrics
    *fixed, last = (word for word in told["command"] if "=" in word or word == "${args_no_hyphens}")
    assert last == "${args_no_hyphens}"
    plain = [word for word in fixed if not word.startswith("hydra.")]
    for key, space in told["parameters"].items():
        for value in space.get("values") or (space["min"], space["max"]):
            options, (group, field) = composed(*plain, f"{key}={value}"), key.split(".")
            assert str(getattr(getattr(options, group), field)).replace(".0", "").replace(" ", "") == str(value).replace(
                ".0", ""
            )


def test_the_patents_own_method_is_one_option_away() -> None:
    options = composed("+video=bus_to_suv", "experiment=patent")
    assert (options.mask.branches, options.mask.weight, options.mask.threshold) == ("separate", "uniform", "fixed")
    assert (options.mask.union, options.mask.outline, options.mask.settle) == ("none", "none", 0)
    assert (options.reference.mode, options.reference.height_scale, options.reference.heading) == ("as_is", 1, "as_is")
    assert (options.sampler.start, options.sampler.fresh_noise, options.sampler.composite) == ("inverted", 0, False)
    assert options.correction.when == "before_step"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("mask.treshold=otsu", "treshold"),
        ("+mask.treshold=otsu", "mask.treshold"),
        ("+sedd=3", "sedd"),
        ("tuning.steps=many", "steps"),
        ("tuning.steps=-1", "tuning.steps"),
        ("mask.threshold=best", "mask.threshold"),
        ("correction.weights=[1,1,1]", "correction.weights"),
        ("video.width=97", "width"),
        ("reference.mode=clever", "reference.mode"),
        ("tuning.lr=0", "tuning.lr"),
        ("seed=-4", "seed"),
        ("memory.weights=half", "trainer.precision"),
        ("memory.chunk=0", "memory.chunk"),
        ("tuning.image_noise=5000", "tuning.image_noise=5000 is out of range"),
        ("tuning.image_noise=-3", "tuning.image_noise=-3 is out of range"),
        ("tuning.weight_decay=-1", "tuning.weight_decay=-1.0 is out of range"),
        ("+trainer.precison=bf16", "trainer.precison is unknown: did you mean precision"),
        ("+backbone.pth=3", "backbone.pth is unknown: did you mean path"),
        ("+logger.foo=3", "logger.foo=3 says nothing to call"),
        ("+logger.csv.nme=a", "logger.csv.nme is unknown: did you mean name"),
        ("backbone._target_=tave.nowhere", "backbone._target_=tave.nowhere"),
        ("video.frames=0", "video.frames=0 is out of range"),
    ],
)
def test_a_wrong_key_or_value_fails_by_name(override: str, named: str) -> None:
    with pytest.raises((HydraException, ValueError)) as caught:
        composed("+video=bus_to_suv", override)
    told = chain([caught.value], [e for e in (caught.value.__cause__,) if e])
    assert any(named in str(error) for error in told)


def test_several_target_images_and_their_mattes_are_counted() -> None:
    asked = ["+video=custom", "video.path=a.mp4", "video.source_prompt=a", "video.target_prompt=b"]
    (entry,) = composed(*asked, "video.target_image=[a.png,b.png]", "video.matte=[m.png,n.png]").video.requests().values()
    assert entry.images == [("a.png", "m.png"), ("b.png", "n.png")]
    (entry,) = composed(*asked, "video.target_image=a.png").video.requests().values()
    assert entry.images == [("a.png", None)]
    for wrong, named in (("[a.png,b.png]", "video.matte has 1 for 2"), ("[]", "is empty"), ("3", "is no path")):
        with pytest.raises(OptionError, match=named):
            _ = [
                e.images for e in composed(*asked, f"video.target_image={wrong}", "video.matte=m.png").video.requests().values()
            ]


def test_options_that_exclude_each_other_are_told() -> None:
    with pytest.raises(OptionError, match=r"reference\.confine=source.*memory\.branches=together"):
        composed("+video=bus_to_suv", "memory=8gb", "reference.confine=source")


def test_no_clip_is_told_with_the_remedy() -> None:
    with pytest.raises(OptionError, match=r"video\.path.*\+video="):
        composed()


def test_image_and_prompt_belong_together() -> None:
    with pytest.raises(OptionError, match="belong together"):
        composed("+video=bus_to_suv", "video.target_image=car.png").video.requests()


def test_a_mask_and_a_matte_are_the_only_listed_edits() -> None:
    """They were dropped without a word, and so the edit was found where the user had drawn it."""
    (entry,) = composed("+video=bus_to_suv", "video.mask=m.mp4", "video.matte=m.png").video.requests().values()
    assert (entry.mask, entry.matte) == ("m.mp4", "m.png")
    listed = composed("+video=bus_to_suv").video
    two = replace(listed, edits={"one": listed.edits["suv"], "two": listed.edits["suv"]})
    for video in (two, replace(listed, edits={})):
        for key in ("mask", "matte"):
            with pytest.raises(OptionError, match=rf"video\.{key} is one edit's and {len(video.edits)} are listed"):
                replace(video, **{key: "m.png"}).requests()  # type: ignore[arg-type]


def test_beside_a_target_image_they_are_its_own() -> None:
    told = ("video.target_image=car.png", "video.target_prompt=a car", "video.mask=m.mp4")
    asked = composed("+video=bus_to_suv", *told).video.requests()
    assert {name: entry.mask for name, entry in asked.items()} == {"suv": None, "car": "m.mp4"}


def test_no_edit_replaces_another_of_its_name() -> None:
    told = ("+video=bus_to_suv", "video.target_prompt=a car")
    for taken in (["video.target_image=suv.png"], ["video.target_image=car.png", "video.edit=suv"]):
        with pytest.raises(OptionError, match=r"video\.edit=suv is an edit of this clip already"):
            composed(*told, *taken).video.requests()
    with pytest.raises(OptionError, match=r"video\.edit names the edit of video\.target_image"):
        composed("+video=bus_to_suv", "video.edit=car").video.requests()
