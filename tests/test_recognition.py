"""What of a photograph is the target: by a hand-made network that knows where it is."""

from __future__ import annotations

import torch
from torch import Tensor

from tave.conditions import Condition
from tave.denoiser import Prediction, Tap
from tave.recognition import narrowed, recognised

ALPHAS = torch.linspace(0.99, 0.05, 1000, dtype=torch.float64)


def words() -> Condition:
    return Condition(text=torch.ones(1, 2, 3), image=torch.ones(1, 1, 4), null_text=torch.zeros(1, 2, 3))


class Knowing:
    """Told the target, it predicts other noise where that is; elsewhere a little, as any network would."""

    def __init__(self, where: Tensor) -> None:
        self.where = where

    def __call__(
        self, latents: Tensor, t: int, condition: Condition, guidance_scale: float = 1.0, tap: Tap | None = None
    ) -> Prediction:
        told = condition.text.flatten(1).any(1).view(-1, 1, 1, 1, 1)
        return Prediction(latents + told * (0.1 + self.where))


def photograph() -> tuple[Tensor, Tensor, Tensor]:
    """A red van before a grey house under a blue sky, 96 px: picture `1 3 H W`; the van and the house, `1 H W`."""
    picture = torch.tensor([-0.2, 0.2, 0.9])[:, None, None].repeat(1, 96, 96)
    van, house = torch.zeros(1, 96, 96), torch.zeros(1, 96, 96)
    van[:, 48:80, 16:72] = 1
    house[:, 16:48, 16:40] = 1
    noise = 0.05 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    for where, colour in ((house, [0.1, 0.1, 0.1]), (van, [0.8, -0.7, -0.7])):
        picture = torch.where(where > 0, torch.tensor(colour)[:, None, None], picture)
    return (picture + noise)[None], van, house


def test_where_the_condition_has_a_say_is_the_object():
    where = torch.zeros(24, 24)
    where[12:20, 4:18] = 1
    where[2, 2] = 1  # and a speck
    cells = recognised(Knowing(where), ALPHAS, torch.zeros(1, 3, 4, 24, 24), words(), torch.Generator().manual_seed(0))
    where[2, 2] = 0
    assert torch.equal(cells, where > 0)


def test_a_house_behind_the_object_is_none_of_it():
    picture, van, house = photograph()
    cells = torch.zeros(24, 24, dtype=torch.bool)
    cells[12:20, 5:17] = True  # the network misses an end, and the matte brings it back
    kept = narrowed(torch.maximum(van, house), picture, cells)
    assert float((kept * house).sum()) < 0.05 * float(house.sum())
    assert float((kept * van).sum()) > 0.95 * float(van.sum())


def test_wheels_are_the_object_s_whatever_their_colour():
    picture, van, house = photograph()
    wheels = torch.zeros(1, 96, 96)
    for left in (22, 54):
        wheels[:, 74:86, left : left + 12] = 1
    road = torch.zeros(1, 96, 96)
    road[:, 80:] = 1
    noise = 0.05 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))
    picture = torch.where(torch.maximum(wheels, road) > 0, noise - 0.8, picture)  # as dark as the road
    cells = torch.zeros(24, 24, dtype=torch.bool)
    cells[12:21, 4:18] = True
    kept = narrowed(torch.stack([van, wheels, house]).amax(0), picture, cells)
    assert float((kept * wheels).sum()) > 0.8 * float(wheels.sum())
    assert float((kept * house * (1 - van)).sum()) < 0.05 * float(house.sum())


def test_a_soft_edge_stays_soft():
    picture, van, _ = photograph()
    soft = torch.nn.functional.avg_pool2d(van, 3, 1, 1)
    cells = torch.nn.functional.max_pool2d(van, 4)[0] > 0
    kept = narrowed(soft, picture, cells)
    assert torch.equal(kept[kept > 0], soft[kept > 0]) and float(kept.sum()) > 0.9 * float(soft.sum())


def test_where_the_network_sees_something_else_the_colours_are_believed():
    picture, van, house = photograph()
    cells = torch.zeros(24, 24, dtype=torch.bool)
    cells[22:, 20:] = True
    matte = torch.maximum(van, house)
    assert torch.equal(narrowed(matte, picture, cells), matte)
