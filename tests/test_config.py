"""Options check themselves, and every file of conf/ fits them."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tave import cli, config, keys
from tave.config import CONF, CorrectionOptions, EditEntry, MaskOptions, OptionError, TrainOptions, VideoOptions
from tave.edit import _leaves, changed

FILES = [path.relative_to(CONF).as_posix() for path in sorted(CONF.rglob("*.yaml"))]
GROUP_FILES = [name for name in FILES if name.split("/")[0] in ("backbone", "memory", "logger", "video", "experiment")]
CLIP = {"video": {"path": "clip.mp4", "source_prompt": "a"}, "backbone": {"family": "tiny"}}


def loaded(name: str) -> Any:
    """A file of conf/ without what is Hydra's."""
    file: Any = OmegaConf.load(CONF / name)
    for key in ("defaults", "hydra"):
        file.pop(key, None)
    return file


def test_options_import_the_standard_library_alone() -> None:
    code = (
        "import sys, tave.config; print([m for m in ('torch', 'lightning', 'hydra', 'omegaconf') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("name", sorted(cli.ROOTS))
def test_every_bound_and_choice_is_enforced(name: str) -> None:
    """The value beyond a bound is refused by its full key, and so is NaN; each option has a meaning in one line."""
    owners = [cli.ROOTS[name].kind, *(f.default_factory for f in fields(cli.ROOTS[name].kind))]
    for owner in (owner for owner in owners if isinstance(owner, type) and issubclass(owner, config.Options)):
        for entry in fields(owner):  # type: ignore[arg-type]
            about = entry.metadata
            assert 3 < len(about["help"]) <= 110
            wrong: list[Any] = [
                about[bound] + step for bound, step in (("low", -1), ("high", 1)) if about[bound] is not None
            ]
            wrong += [about["above"]] if about["above"] is not None else []
            wrong += [float("nan")] if wrong else []
            wrong += ["no such choice"] if about["choices"] else []
            for value in wrong:
                with pytest.raises(OptionError, match=rf"^{owner._group}{entry.name}="):
                    owner(**{entry.name: [value] if "list" in str(entry.type) else value})


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: CorrectionOptions(weights=[1, 1, 1]), r"correction\.weights"),
        (lambda: CorrectionOptions(weights=[0.5, 0.5]), r"correction\.weights"),
        (lambda: CorrectionOptions(steps=[0.7, 0.2]), r"correction\.steps"),
        (lambda: MaskOptions(steps=[0.0, 1.5]), r"mask\.steps"),
        (lambda: MaskOptions(steps=[float("nan"), 1.0]), r"mask\.steps"),
        (lambda: MaskOptions(dilate=None), r"mask\.dilate is null"),  # type: ignore[arg-type]
        (lambda: VideoOptions(width=97), r"video\.width=97.*set 96 or 104"),
        (lambda: VideoOptions(height=4), r"video\.height=4.*set 8"),
        (lambda: config.ReferenceOptions(matte="segmented"), r"reference\.segmenter"),
        (lambda: config.BackboneOptions(adapter="there"), r"backbone\.family=ip_adapter"),
        (lambda: TrainOptions(memory=config.MemoryOptions(weights="half")), r"trainer\.precision"),
        (lambda: under("16-mixed", optimizer="fused"), r"memory\.optimizer=adamw"),
        (lambda: TrainOptions(trainer={"precison": "32-true"}), r"trainer\.precison: did you mean precision"),
        (lambda: TrainOptions(trainer={"precision": "bf16"}), r"trainer\.precision=bf16.*bf16-mixed"),
        (lambda: TrainOptions(logger={"tensorbord": {}}), r"logger\.tensorbord: did you mean tensorboard"),
        (lambda: TrainOptions(logger={"csv": {"nme": 1}}), r"logger\.csv\.nme: did you mean name"),
        (lambda: config.SetOptions(kind="folder"), r"set\.folder"),
        (lambda: config.FootprintOptions(sizes=[500]), r"multiples of 64"),
        (lambda: config.PretrainOptions(size=97), r"size=97: give a multiple of 16"),
        (lambda: config.PretrainOptions(size=32), r"crop=48.*at most size=32"),
    ],
)
def test_options_that_exclude_each_other_are_refused_by_name(make: Any, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        make()


def under(precision: str, **memory: Any) -> TrainOptions:
    return TrainOptions(memory=config.MemoryOptions(**memory), trainer={"precision": precision})


def test_what_excludes_nothing_is_taken() -> None:
    assert under("bf16-mixed", optimizer="fused", weights="half").precision == "bf16-mixed"
    assert TrainOptions(logger={"mine": {"_target_": "mine.Logger", "any": 1}}).logger["mine"]


def test_a_judge_is_the_shipped_one_a_folder_or_none() -> None:
    assert TrainOptions().judge == config.JUDGE
    assert TrainOptions(metrics=config.MetricsOptions(judge="mine")).judge == Path("mine")
    assert TrainOptions(metrics=config.MetricsOptions(judge=None)).judge is None


def test_frames_to_read_are_counted_from_start_by_stride() -> None:
    options = config.ReadOptions(frames=2, start=3, stride=2)
    assert [index for index in range(12) if options.wants(index)] == [3, 5]


VIDEO = VideoOptions(path="clip.mp4", source_prompt="a bus", edits={"suv": EditEntry("suv.png", "an suv")})


def test_several_target_images_and_their_mattes_are_counted() -> None:
    assert EditEntry(["a.png", "b.png"], "b", ["m.png", "n.png"]).images == [("a.png", "m.png"), ("b.png", "n.png")]
    assert EditEntry("a.png", "b").images == [("a.png", None)]
    for image, named in ((["a.png", "b.png"], "video.matte has 1 for 2"), ([], "is empty"), (3, "is not a path")):
        with pytest.raises(OptionError, match=named):
            _ = EditEntry(image, "b", "m.png").images


def test_an_edit_is_named_by_its_picture_or_by_name() -> None:
    asked = replace(VIDEO, target_image="my car (1).png", target_prompt="a car", mask="m.mp4")
    assert {name: entry.mask for name, entry in asked.requests().items()} == {"suv": None, "my-car-1": "m.mp4"}
    assert list(replace(asked, edit="car").requests()) == ["suv", "car"]


def test_mask_and_matte_without_a_target_image_belong_to_the_only_listed_edit() -> None:
    (entry,) = replace(VIDEO, mask="m.mp4", matte="m.png").requests().values()
    assert (entry.mask, entry.matte) == ("m.mp4", "m.png")
    for edits in ({}, {"one": VIDEO.edits["suv"], "two": VIDEO.edits["suv"]}):
        with pytest.raises(OptionError, match=rf"video\.matte belongs to one edit and {len(edits)} are listed"):
            replace(VIDEO, edits=edits, matte="m.png").requests()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target_image": "car.png"}, "belong together"),
        ({"target_prompt": "a car"}, "belong together"),
        ({"target_image": "suv.png", "target_prompt": "a car"}, r"video\.edit=suv is an edit of this clip already"),
        ({"edit": "car"}, r"video\.edit names the edit of video\.target_image"),
        ({"target_image": "a.png", "target_prompt": "a", "edit": "../a"}, "can't be a folder name"),
    ],
)
def test_edits_that_no_folder_can_hold_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        replace(VIDEO, **changes).requests()


def test_conf_stays_small() -> None:
    assert len(FILES) <= 65


@pytest.mark.parametrize("name", GROUP_FILES)
def test_every_file_of_a_group_fits_the_options(name: str) -> None:
    cfg: Any = OmegaConf.merge(cli.schema(TrainOptions), CLIP, loaded(name))
    options = cli.typed(OmegaConf.merge(cfg, {"backbone": {"path": "weights"}}))  # type: ignore[arg-type]
    if name.startswith("video/") and name != "video/custom.yaml":
        assert Path(options.video.path).is_file()
        for entry in options.video.requests().values():
            assert Path(entry.images[0][0]).is_file()
            assert Path(str(entry.truth), "truth.npz").is_file()


@pytest.mark.parametrize("name", [name for name in GROUP_FILES if name.startswith("experiment/")])
def test_every_value_of_a_study_fits_the_options(name: str) -> None:
    """Each value of hydra.sweeper.params, without starting Hydra for each."""
    params = OmegaConf.select(OmegaConf.load(CONF / name), "hydra.sweeper.params") or {}
    for key, values in params.items():
        (override,) = OverridesParser.create().parse_overrides([f"{key}={values}"]) if key != "+video" else [None]
        for value in override.sweep_iterator() if override and override.is_choice_sweep() else []:
            cfg: Any = OmegaConf.merge(cli.schema(TrainOptions), CLIP, loaded(name))
            OmegaConf.update(cfg, key, OmegaConf.create({"value": value}).value)
            assert cli.typed(cfg), key
        assert keys.option_at(TrainOptions, key.lstrip("+")), key


def test_backbones_set_only_the_documented_keys() -> None:
    seen = {}
    for name in keys.choices_of("backbone"):
        words = ["video=custom", "video.path=a", "video.source_prompt=b", f"backbone={name}"]
        seen[name] = dict(_leaves(cli.resolved(cli.compose_config("train", words))))
    assert len(seen) == 6
    differing = {key for one in seen.values() for two in seen.values() for key in one if one[key] != two.get(key)}
    assert {key for key in differing if not key.startswith("backbone.")} <= set(config.BACKBONE_KEYS)


def test_a_memory_preset_sets_the_precision_and_is_known_to_the_footprint() -> None:
    assert sorted(["auto", *config.PRESETS]) == keys.choices_of("memory")
    assert all(loaded(f"memory/{name}.yaml").trainer.precision in config.PRECISIONS for name in config.PRESETS)


def test_the_patents_configuration_is_one_option_away() -> None:
    cfg: Any = OmegaConf.merge(cli.schema(TrainOptions), loaded("experiment/patent.yaml"))
    assert (cfg.mask.branches, cfg.mask.weight, cfg.mask.threshold) == ("separate", "uniform", "fixed")
    assert (cfg.mask.union, cfg.mask.drop_unchanged, cfg.mask.min_piece) == ("none", 0, 0)
    assert (cfg.reference.mode, cfg.reference.frame) == ("as_is", "middle")
    assert (cfg.sampler.fresh_noise, cfg.sampler.composite) == (0, False)
    assert (cfg.correction.when, cfg.correction.agreement, cfg.correction.block) == ("before_step", None, -2)


def test_each_parameter_of_the_wandb_sweep_is_an_option() -> None:
    file: Any = OmegaConf.to_container(OmegaConf.load(CONF / "sweep" / "wandb.yaml"))
    (objective,) = (word for word in file["command"] if word.startswith("metrics.objective="))
    assert file["metric"]["name"] == "goal" and objective.partition("=")[2] in config.STUDY_METRICS
    for key, space in file["parameters"].items():
        for value in space.get("values") or (space["min"], space["max"]):
            cfg: Any = OmegaConf.merge(cli.schema(TrainOptions), CLIP)
            OmegaConf.update(cfg, key, value)
            assert cli.typed(cfg)


def test_the_trainers_arguments_are_lightnings() -> None:
    file = Path(str(getattr(find_spec("lightning"), "origin", None))).parent / "pytorch" / "trainer" / "trainer.py"
    trainer = next(n for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef) and n.name == "Trainer")
    init = next(n for n in trainer.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    assert set(config.TRAINER_ARGUMENTS) <= {argument.arg for argument in init.args.kwonlyargs}


def test_methods_of_the_benchmark_change_only_what_an_edit_may() -> None:
    recorded = cli.resolved(cli.compose_config("train", ["video=bus_to_suv"]))
    for name, method in cli.compose_options("benchmark").define.items():
        words = [f"experiment={method.experiment}"] if method.experiment else []
        assert cli.typed(changed(recorded, [*words, *method.overrides])), name
