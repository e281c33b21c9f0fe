"""Two uses of one seed never share random numbers."""

from __future__ import annotations

import itertools

import torch

from tave.backbone import Backbone
from tave.encoders import Encoders
from tave.seeds import derive_seed, generator_for


def test_every_use_has_a_seed_of_its_own() -> None:
    uses = [("image condition",), ("start noise",), *(("tuning", step) for step in range(100))]
    seeds = {derive_seed(seed, *use) for seed, use in itertools.product(range(10), uses)}
    assert len(seeds) == 10 * len(uses) and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(3, "tuning", 5) == derive_seed(3, "tuning", 5)


def test_start_noise_and_condition_noise_differ(tiny: Backbone) -> None:
    start = torch.randn(1, tiny.image_width, generator=generator_for(7, "start noise"))
    assert not torch.isclose(Encoders(tiny, seed=7).noise, start).any()
