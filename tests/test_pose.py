"""How the target stands: by hand-made networks that know what the words mean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tave.conditions import Condition
from tave.denoiser import Prediction, Tap
from tave.pose import (
    SHARES,
    Seen,
    explained_turned,
    gain,
    looks_away,
    painted,
    room,
    seen_in,
    silhouette_of,
    typical_height,
)
from tave.reference import Placed, Pose, Stance
from tave.schedule import Schedule

F, C, H, W = 3, 2, 20, 24


ALPHAS = torch.linspace(0.99, 0.05, 1000, dtype=torch.float64)
MISS = 2.0
SCHEDULE = Schedule([-1, *range(99, 1000, 100)], torch.cat([ALPHAS[:1], ALPHAS[99::100]]))
STANCE = Stance(np.full(F, 88.0), np.full(F, 64.0), np.full(F, 20.0))  # of frames of 128 x 96, in cells of 4


def words() -> Condition:
    return Condition(text=torch.ones(1, 2, 3), image=torch.ones(1, 1, 4), null_text=torch.zeros(1, 2, 3))


def bar(pose: Pose) -> Tensor:
    """`f 1 H W`: what the target covers in ``pose``; its taller end tells where it looks."""
    alpha = torch.zeros(F, 1, H, W)
    tall = round(8 * pose.height)
    alpha[:, :, H - tall :, 8:16] = 1
    alpha[:, :, H - tall : H - tall // 2, slice(8, 12) if pose.mirrored else slice(12, 16)] = 0
    return alpha


class Knowing:
    """Told the words, it predicts the noise exactly where the clip is as it is wanted; told nothing, it misses each cell alike.

    ``shown``: the clean clip that it is asked about, which is how it can miss everything by the same.
    """

    def __init__(self, wanted: Pose) -> None:
        self.clean, self.shown, self.calls = bar(wanted)[None].expand(-1, -1, C, -1, -1), torch.zeros(()), 0

    def __call__(
        self, latents: Tensor, t: int, condition: Condition, guidance_scale: float = 1.0, tap: Tap | None = None
    ) -> Prediction:
        self.calls += 1
        a = ALPHAS[t].float()
        wanted, all_alike = ((latents - a.sqrt() * clean) / (1 - a).sqrt() for clean in (self.clean, self.shown))
        words = condition.text.flatten(1).any(1).view(-1, 1, 1, 1, 1)
        return Prediction(torch.where(words, wanted, all_alike + MISS))


def place(pose: Pose) -> Placed:
    alpha = bar(pose)
    return Placed(alpha.expand(-1, 3, -1, -1), alpha)


def encode(pictures: Tensor) -> Tensor:
    return pictures[None, :, :C]


def noises(shape: torch.Size) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in SHARES]


def explaining(network: Knowing) -> Callable[[Tensor], float]:
    def explained(clip: Tensor) -> float:
        network.shown = clean = encode(clip)
        return gain(network, ALPHAS, clean, words(), noises(clean.shape))

    return explained


def test_the_gain_is_the_error_that_the_words_save():
    exact, wrong = (explaining(Knowing(wanted))(place(Pose(1.0)).pictures) for wanted in (Pose(1.0), Pose(0.5)))
    cells = F * C * H * W
    assert exact == pytest.approx(len(SHARES) * cells * MISS**2, rel=1e-4)
    off = float((bar(Pose(0.5)) != bar(Pose(1.0))).sum()) * C
    odds = sum(float(ALPHAS[round(share * 999)] / (1 - ALPHAS[round(share * 999)])) for share in SHARES)
    assert exact - wrong == pytest.approx(off * odds, rel=1e-3)  # a cell that is off by 1 is off by sqrt(a / (1 - a)) in noise


@pytest.mark.parametrize("turned", [False, True])
def test_the_heading_that_the_condition_explains_better_is_taken(turned: bool):
    network = Knowing(Pose(1.0, turned))
    assert explained_turned(place, explaining(network), 1.0) is turned
    assert network.calls == 2 * len(SHARES)


def test_the_room_holds_larger_objects_on_the_same_ground():
    where = room(STANCE._replace(middles=np.full(F, 128.0)), (96, 256), (24, 64))
    assert where.shape == (1, F, 1, 24, 64)
    rows, columns = (torch.nonzero(where[0, 0, 0].any(axis))[:, 0] for axis in (1, 0))
    assert int(rows[0]) == (88 - 64) / 4 and int(rows[-1]) == 22  # 3.2 heights up, a quarter down
    assert int(columns[0]) == 10 and int(columns[-1]) == 53  # whose middles are less than 4.5 heights away


class Painting:
    """Told the words it sees a block of ``tall`` cells on the ground in every frame, told nothing the bare clip."""

    def __init__(self, tall: int, left: int = 12) -> None:
        self.block = torch.zeros(1, F, 1, 24, 32)
        self.block[..., 22 - tall : 22, left : left + 9] = 1.0

    def __call__(
        self, latents: Tensor, t: int, condition: Condition, guidance_scale: float = 1.0, tap: Tap | None = None
    ) -> Prediction:
        a = ALPHAS[t].float()
        told = condition.text.flatten(1).any(1).view(-1, 1, 1, 1, 1)
        return Prediction((latents - a.sqrt() * told * self.block) / (1 - a).sqrt())


def seen(tall: int, left: int = 12) -> list[Seen]:
    where = room(STANCE, (96, 128), (24, 32))
    bare, generator = torch.zeros(1, F, 1, 24, 32), torch.Generator().manual_seed(0)
    latents, say = painted(Painting(tall, left), SCHEDULE, bare, where, words(), generator, guidance_scale=1.0)
    assert torch.equal(latents[where == 0], bare[where == 0])
    clip = latents[0].expand(-1, 3, -1, -1).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return seen_in(clip, say, where, STANCE)


@pytest.mark.parametrize("tall", [3, 5, 9])
def test_what_the_network_paints_tells_how_tall_the_target_is(tall: int):
    objects = seen(tall)
    assert len(objects) == F and typical_height(objects) == pytest.approx(4 * tall / 20, abs=0.06)


def test_what_is_cut_off_at_the_end_of_its_room_tells_nothing():
    assert seen(5, left=0) == [] and typical_height([]) == 1.0


def test_specks_have_no_say():
    whole, speck = (Seen(area, height, np.ones((2, 2))) for area, height in ((100.0, 0.8), (5.0, 0.1)))
    assert typical_height([whole, whole, speck, speck, whole, speck, whole]) == pytest.approx(0.8)


def test_a_target_that_looks_the_other_way_than_what_is_painted_looks_away():
    low = np.zeros((30, 60))
    low[10:, :] = 1
    low[:10, 40:] = 1  # its cabin is on the right
    right, left = silhouette_of(low), silhouette_of(low[:, ::-1])
    objects = [Seen(100.0, 1.0, right)] * 3 + [Seen(100.0, 1.0, left)]
    assert looks_away(right, objects) is False and looks_away(left, objects) is True


def test_where_the_shape_does_not_tell_it_is_said():
    box = silhouette_of(np.ones((20, 50)))
    assert looks_away(box, [Seen(100.0, 1.0, box)]) is None
    low = np.tri(20, 50)
    assert looks_away(silhouette_of(low), []) is None
