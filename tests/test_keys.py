"""What is typed after a key of a path or a prompt arrives as it is; Hydra's grammar is for what is truly meant."""

from __future__ import annotations

import random
import shlex
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tave import cli, keys
from tave.config import OptionError
from tave.sweep import job_folder

SENTENCES = [
    *("a farmer's red suv", "a red suv, at night", "ein grünes Auto", "a red suv (2024)", "a red suv; snow"),
    *(
        "clip (1).mp4",
        "jürgen/clip.mp4",
        "~/clip.mp4",
        '"new" bus',
        "'old' and 'new'",
        '"a',
        "[red] bus",
        "[a].png,[b]",
    ),
    *("true", "1e3", "1_000", "007", " a ", "\t", "", "a=b", "$HOME", "${seed}", "\\${seed}", "#1", "50%", "C:\\a\\"),
    *("line\nbreak\\\n", "🚙", "choice", "{x: 1}", "a,b", "~", "?", "*", "null bus", "--multirun", "@", "\u2028"),
]
PIECES = [*"'\"[]{}()=$#%\\\n\t,;: @~+-*?|", "${", "a", "é", "🚙", "null", "true", "1e3", "choice(", "  ", "\\\\"]
EDIT = "video.edits.my-suv."


def texts(count: int, seed: int = 0) -> list[str]:
    """Random texts of what parsers trip over; none that is taken for Hydra's grammar, as the documentation says."""
    draw = random.Random(seed)
    made = ["".join(draw.choices(PIECES, k=draw.randint(0, 9))) for _ in range(count)]
    return [
        text for text in made if not (keys.SWEEP.fullmatch(text) or (text[:1] in ("'", '"') and text[-1:] == text[:1]))
    ]


def arrived(word: str) -> Any:
    """The value of a word in Hydra's grammar, as OmegaConf gives it."""
    made = OmegaConf.create({"value": OverridesParser.create().parse_override(word).value()})
    return OmegaConf.to_container(made, resolve=True)["value"]  # type: ignore[index]


@pytest.mark.parametrize("key", ["video.path", "video.source_prompt", "cache", "reference.segmenter", "video.name"])
def test_a_text_arrives_as_it_was_typed(key: str) -> None:
    for text in [*SENTENCES, *texts(60)]:
        (word,) = keys.prepared([f"{key}={text}"], "train")
        assert arrived(word) == text
        assert keys.prepared([word], "train") == [word]  # a job's words are prepared again


def test_sentences_arrive_in_every_place_of_a_whole_configuration() -> None:
    places = ["video.path", "video.source_prompt", f"{EDIT}target_prompt", f"{EDIT}target_image", f"{EDIT}mask"]
    for i in range(0, len(SENTENCES), 5):
        given = dict(zip(places, SENTENCES[i : i + 5], strict=False))
        words = [
            "+video=custom",
            f"{EDIT}target_image=a.png",
            f"{EDIT}target_prompt=a",
            "video.path=a",
            "video.source_prompt=b",
        ]
        video = cli.compose_options("train", [*words, *(f"{key}={text}" for key, text in given.items())]).video
        found = (
            video.path,
            video.source_prompt,
            *(getattr(video.edits["my-suv"], key) for key in ("target_prompt", "target_image", "mask")),
        )
        assert found[: len(given)] == tuple(given.values())


@pytest.mark.parametrize(
    ("root", "key"),
    [
        *(("score/score", key) for key in ("run", "edited", "target_prompt", "out")),
        *(("leaderboard/leaderboard", key) for key in ("runs", "title", "versus")),
        *(("study/study", key) for key in ("sweep", "cases")),
        *(("benchmark", key) for key in ("folder", "set.folder")),
        *(("doctor", key) for key in ("backbone.path", "segmenter")),
        *(("edit", key) for key in ("run", "video.target_prompt", "video.edit")),
    ],
)
def test_every_command_takes_names_as_they_are(root: str, key: str) -> None:
    for text in SENTENCES:
        assert arrived(keys.prepared([f"{key}={text}"], root)[0]) == text


@pytest.mark.parametrize(
    ("value", "images"),
    [
        ("[a.png,b.png]", ["a.png", "b.png"]),
        ("[a (1).png, jürgen/b.png]", ["a (1).png", "jürgen/b.png"]),
        ("['a, b.png',\"c's.png\",it's.png]", ["a, b.png", "c's.png", "it's.png"]),
        ("[${seed}.png]", ["${seed}.png"]),
        ("[1,true]", ["1", "true"]),
        ("[]", []),
        ("null", None),
        ("'null'", "null"),
        ("'a, b.png'", "a, b.png"),
        ("[a].png", "[a].png"),
    ],
)
def test_lists_quotes_and_null_are_hydras(value: str, images: Any) -> None:
    assert arrived(keys.prepared([f"video.target_image={value}"], "train")[0]) == images


def swept(*words: str) -> list[list[str]]:
    """The values of each swept word."""
    parsed = OverridesParser.create().parse_overrides(keys.prepared(words, "train", sweep=True))
    return [[arrived(f"a={each}") for each in o.sweep_string_iterator()] for o in parsed if o.is_sweep_override()]


def test_in_a_sweep_a_comma_separates_texts_and_each_arrives_as_typed() -> None:
    assert swept("video.source_prompt=a farmer's bus,ein grünes Auto (2024)") == [
        ["a farmer's bus", "ein grünes Auto (2024)"]
    ]
    assert swept("video.path='a, b.mp4',c (1).mp4") == [["a, b.mp4", "c (1).mp4"]]
    assert swept("video.target_image=[a.png,b (1).png],c's.png,null") == [[["a.png", "b (1).png"], "c's.png", None]]
    assert swept("video.path=choice(a,b)", "mask.dilate=0,0.1") == [["a", "b"], [0, 0.1]]
    assert swept("video.path=clip (1).mp4", "video.source_prompt='a bus, at night'") == []


@pytest.mark.parametrize("value", ["a red suv, at night", "a ,b", "a,", "it's a bus, a car's, 'x'"])
def test_a_comma_that_may_be_a_sentences_is_refused_with_what_works(value: str) -> None:
    with pytest.raises(OptionError, match="for one value") as caught:
        keys.prepared([f"video.source_prompt={value}"], "train", sweep=True)
    one = shlex.split(str(caught.value).partition(" give ")[2].rpartition(" for one value, ")[0])
    assert swept(*one) == [] and arrived(keys.prepared(one, "train", sweep=True)[0]) == value
    several = shlex.split(str(caught.value).rpartition(" for one value, ")[2].rpartition(" for ")[0])
    assert swept(*several) == [[part.strip() if part.strip() != "'x'" else "x" for part in value.split(",")]]


@pytest.mark.parametrize("word", ["mask.dilate=(3", "metrics.objective=it's", "logger.wandb.notes=a (1), b's\\"])
def test_an_error_shows_the_quoting_that_works(word: str) -> None:
    with pytest.raises(OptionError, match="can't be read: quote it as ") as caught:
        cli.compose_options("train", ["video=bus_to_suv", word])
    (shown,) = shlex.split(str(caught.value).partition("quote it as ")[2].removesuffix(" if it is a text"))
    key, _, value = word.partition("=")
    assert shown.startswith(f"{key}=") and arrived(shown) == value


def test_an_edit_of_ones_own_can_be_swept() -> None:
    words = [f"{EDIT}target_image=a.png", f"{EDIT}target_prompt=a car's,b", f"{EDIT}matte=m (1).png"]
    made = keys.prepared(words, "train", sweep=True)
    assert made[0] == '++video.edits={my-suv: {target_image: "a.png", matte: "m (1).png"}}'
    assert made[1] == f'++{EDIT}target_prompt="a car\'s","b"'


@pytest.mark.parametrize("name", ["größer", "x" * 101, "a..b"])
def test_a_name_that_cannot_be_a_folders_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=r"can't be a folder name: use at most 100 letters|unknown option"):
        keys.prepared([f"video.edits.{name}.target_prompt=a"], "train")


@pytest.mark.parametrize("place", ["outputs/jürgen (1)", "a, b", "it's"])
def test_a_run_folder_is_taken_as_it_is_typed(place: str) -> None:
    assert keys.prepared([f"hydra.run.dir={place}"], "train") == [f"hydra.run.dir={keys.quoted(place)}"]
    for word in ("hydra.run.dir=${oc.env:HOME}/a", 'hydra.sweep.dir="quoted"', "~hydra.run.dir"):
        assert keys.prepared([word], "train") == [word]


# ---- the folders of jobs ---------------------------------------------------------------------------------------------


def test_every_job_has_a_folder_of_its_own_that_file_systems_take() -> None:
    long = "ein grünes Auto, größer als das alte, fährt über die Brücke " * 4
    values = [*SENTENCES, *texts(60), long, long + ".", long + "!", "🚙" * 90]
    prompts = [f"video.source_prompt={keys.quoted(text)}" for text in dict.fromkeys(values)]
    folders = [
        job_folder([prompt, f"sampler.guidance_scale={scale}"]) for prompt in prompts for scale in (1, "-1", 7.5)
    ]
    experiments = ("null", "patent", "fresh_noise", "[patent,fresh_noise]")
    folders += [job_folder([f"experiment={name}"]) for name in experiments]
    assert len(set(folders)) == len(folders)
    assert all(len(folder.encode()) < 100 and Path(folder).name == folder for folder in folders)


def test_the_same_values_have_the_same_folder() -> None:
    words = ["+video=bus_to_suv", 'video.source_prompt="a bus"', "mask.steps=[0.0,0.5]", "seed=3"]
    other = ["+video=bus_to_suv", "video.source_prompt='a bus'", "mask.steps=[0.0, 0.5]", "seed=3", "logger=none"]
    assert {job_folder(order) for order in permutations(words)} == {job_folder(other)}
    assert job_folder(["video.source_prompt=a\\ bus"]) == job_folder(['video.source_prompt="a bus"'])
    assert job_folder(["trainer.x=3"]) != job_folder(["trainer.x='3'"])  # a number and a text
    assert job_folder(words).startswith("video-bus_to_suv-mask-steps-0-0-0-5-seed-3")
