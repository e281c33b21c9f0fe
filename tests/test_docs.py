"""The documentation's code runs as written, and its commands name options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tave.backbone import Backbone
from tave.cli import compose_config
from tave.config import BackboneOptions
from tave.correction import Level, Step
from tave.denoiser import Denoiser
from tave.encoders import Condition
from tave.inversion import invert
from tave.schedule import Schedule

ROOT = Path(__file__).parent.parent


def blocks(page: Path, language: str, heading: str = "") -> list[str]:
    """The code blocks of ``language`` on a page, below ``heading`` if given."""
    text = page.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0] if heading else page.read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_blocks(heading: str, names: dict[str, Any]) -> dict[str, Any]:
    for block in blocks(ROOT / "docs/extending.md", "python", heading):
        exec(block, names)
    return names


def test_the_correction(tiny: Backbone, condition: Condition) -> None:
    schedule, denoiser = Schedule.from_scheduler(tiny.scheduler, 3), Denoiser(tiny.unet, tiny.scheduler)
    latents = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 2, 1, 8, 8)
    mask[..., 2:5, 2:5] = 1
    given = {"schedule": schedule, "denoiser": denoiser, "condition": condition, "mask": mask}
    made = run_blocks("A correction", given | {"trajectory": invert(denoiser, schedule, latents, condition)})
    assert torch.equal(made["latents"] * (1 - mask), latents * (1 - mask))
    step = Step(Level(0, 3, *schedule.alphas[[1, 0]]), latents, latents, latents)
    means = made["SteadyMean"](mask, share=1.0)(step)[:, :, :, 2:5, 2:5].mean((3, 4))
    assert torch.allclose(means[:, 0], means[:, 1], atol=1e-6)


def test_the_metric() -> None:
    metric = run_blocks("A metric", {})["metric"]
    metric.update(torch.full((2, 3, 4, 4), 2 / 255), torch.zeros(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool))
    assert float(metric.compute()) == pytest.approx(1.0)


def test_the_backbone_family(saved: Path, tiny: Backbone) -> None:
    loaded = run_blocks("A backbone family", {})["load_pipeline"](BackboneOptions(path=str(saved)))
    assert all(torch.equal(a, b) for a, b in zip(loaded.unet.parameters(), tiny.unet.parameters(), strict=True))


def test_the_study() -> None:
    params = yaml.safe_load(blocks(ROOT / "docs/extending.md", "yaml", "A study")[0])["hydra"]["sweeper"]["params"]
    compose_config("train", [f"{key}={str(values).split(',')[0]}" for key, values in params.items()])


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md", "docs/real_weights.md", "docs/reference.md"])
def test_commands_name_options_that_exist(page: str) -> None:
    lines = "".join(blocks(ROOT / page, "bash")).replace("\\\n", " ").splitlines()
    for words in (shlex.split(line, comments=True)[3:] for line in lines if "python -m tave.train " in line):
        if not {"-m", "--config-dir"} & {*words}:
            compose_config("train", words)


@pytest.mark.slow
def test_the_edit_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/edit_by_hand.py").read_text()
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r"(?m)^(TUNING_STEPS, .* = |STEPS, .* = )\d+", r"\g<1>3", text), {})
    assert Path("outputs/by_hand/edited.mp4").is_file()
