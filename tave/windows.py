"""A clip of any length in windows of the network's frames (docs/method.md, section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tave.config import OptionError


@dataclass(frozen=True, eq=False)
class Window:
    """The frames ``start`` to ``stop - 1`` of a clip, predicted in one evaluation of the network.

    ``weights``: `stop-start` float64, the shares of this window's predictions; over all windows they sum to 1 in every
    frame. The network sees two frames more, unless the window begins the clip: the clip's first frame, and the one
    before ``start``, so that ST-Attn reads the same two frames as in the whole clip.
    """

    start: int
    stop: int
    weights: Tensor

    @property
    def context(self) -> int:
        """The number of leading frames that the network sees without predicting them."""
        return 2 if self.start else 0

    @property
    def frames(self) -> list[int]:
        """The indices of the frames that the network sees: context, then those of the window."""
        return [0, self.start - 1][: self.context] + list(range(self.start, self.stop))

    def of(self, values: Tensor) -> Tensor:
        """The window's :attr:`frames` of a clip `b f ...`; a clip of one window as it is."""
        return values if len(self.frames) == values.shape[1] else values[:, self.frames]

    def add(self, part: Tensor, total: Tensor) -> None:
        """Add the window's share, of `b n ...` in the order of :attr:`frames`, to that of the clip `b f ...`."""
        weights = self.weights.to(part).view(-1, *[1] * (part.ndim - 2))
        total[:, self.start : self.stop] += weights * part[:, self.context :]


@lru_cache(maxsize=8)
def windows(clip: int, frames: int, overlap: int) -> tuple[Window, ...]:
    """The windows of a clip of ``clip`` frames for a network that takes ``frames`` of them, in order.

    All have ``frames`` frames with their context. They are spread evenly, so that neighbours share at least
    ``overlap`` of the frames that they predict; there, weights rise and fall linearly. A clip that fits one window has
    one, without context. Raises :class:`OptionError` where there is no room for context, overlap and a new frame.
    """
    if clip <= frames:
        return (Window(0, clip, torch.ones(clip, dtype=torch.float64)),)
    own = frames - 2  # predicted by every window but the first
    if overlap >= own:
        raise OptionError(f"window.overlap={overlap} leaves windows of {frames} frames no new one: set it below {own}")
    count = -((frames - clip) // (own - overlap))
    stops = [frames + (clip - frames) * number // count for number in range(count + 1)]
    spans = [(0, frames), *((stop - own, stop) for stop in stops[1:])]
    shares = torch.zeros(len(spans), clip, dtype=torch.float64)
    for number, (start, stop) in enumerate(spans):
        before = stops[number - 1] - start if number else 0  # frames shared with the neighbours
        after = stop - spans[number + 1][0] if number < count else 0
        place = torch.arange(stop - start, dtype=torch.float64)
        rising = (place + 1) / (before + 1) if before else torch.ones_like(place)
        falling = (place.flip(0) + 1) / (after + 1) if after else torch.ones_like(place)
        shares[number, start:stop] = torch.minimum(rising, falling).clamp(max=1)
    shares /= shares.sum(0)
    return tuple(Window(*span, share[slice(*span)]) for span, share in zip(spans, shares, strict=True))
