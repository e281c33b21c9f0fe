"""How the target stands: the pose that the network finds most like the words, by hand-made networks that know the answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tave.conditions import Condition
from tave.denoiser import Prediction, Tap
from tave.pose import COARSE, HEIGHTS, SHARES, find_pose, gain
from tave.reference import Placed, Pose

F, C, H, W = 3, 2, 20, 24


ALPHAS = torch.linspace(0.99, 0.05, 1000, dtype=torch.float64)
MISS = 2.0
BARE = torch.zeros(F, 3, H, W)


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


def find(network: Knowing, height: float | None, heading: str, on_step: Callable[[int, int], None] | None = None) -> Pose:
    return find_pose(place, explaining(network), BARE, height=height, heading=heading, on_step=on_step)


def test_the_gain_is_the_error_that_the_words_save():
    exact, wrong = (explaining(Knowing(wanted))(place(Pose(1.0)).pictures) for wanted in (Pose(1.0), Pose(0.5)))
    cells = F * C * H * W
    assert exact == pytest.approx(len(SHARES) * cells * MISS**2, rel=1e-4)
    off = float((bar(Pose(0.5)) != bar(Pose(1.0))).sum()) * C
    odds = sum(float(ALPHAS[round(share * 999)] / (1 - ALPHAS[round(share * 999)])) for share in SHARES)
    assert exact - wrong == pytest.approx(off * odds, rel=1e-3)  # a cell that is off by 1 is off by sqrt(a / (1 - a)) in noise


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("height", [HEIGHTS[2], 1.0, HEIGHTS[6]])
def test_the_pose_that_fits_is_found(height: float, mirrored: bool):
    found = find(Knowing(Pose(height, mirrored)), None, "auto")
    assert found == Pose(height, mirrored)


def test_what_is_given_is_not_asked():
    network = Knowing(Pose(2.0, True))
    assert not find(network, None, "as_is").mirrored and find(network, None, "mirrored").mirrored
    network.calls = 0
    assert find(network, 1.0, "auto").height == 1.0 and network.calls == 3 * len(SHARES)


@pytest.mark.parametrize(
    ("height", "heading", "looked"),
    [(None, "auto", 1 + 2 * len(COARSE) + len(HEIGHTS) - len(COARSE)), (None, "as_is", 1 + len(HEIGHTS)), (1.0, "auto", 3)],
)
def test_each_pose_is_looked_at_once_and_the_bar_ends_full(height: float | None, heading: str, looked: int):
    seen: list[tuple[int, int]] = []
    network = Knowing(Pose(1.0))
    find(network, height, heading, lambda done, total: seen.append((done, total)))
    assert seen == [(number, looked) for number in range(1, looked + 1)] and network.calls == looked * len(SHARES)


def test_where_no_height_gains_anything_it_is_the_old_objects():
    assert find_pose(place, lambda clip: -float(clip.sum()), BARE, height=None, heading="as_is") == Pose(1.0)
