"""The inter-frame field: which cell of a neighbouring frame looks like this cell (docs/method.md, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize

# Cosine differences of this size are rounding, so two such candidates count as a tie.
TIE = 1e-6


@dataclass(frozen=True)
class Field:
    """For each cell of each frame, its neighbour's cell: ``previous`` and ``following``, `f h w` int64.

    A cell has the index ``y * w + x``; -1 where there is no neighbour: first and last frame, no candidate, or one that
    fails the forward-backward check (:func:`agreeing`).
    """

    previous: Tensor
    following: Tensor


def correspond(features: Tensor, mask: Tensor | None = None) -> Field:
    """``N[p] = argmin_q (1 - cos(f_i[p], f_j[q]))`` for consecutive frames of features `f d h w`.

    One similarity matrix per pair of frames gives both directions: its rows the following, its columns the
    previous neighbours. With ``mask`` `f h w` only masked cells are matched, and only with masked cells; a
    frame without any has no neighbours and is none.
    """
    count, _, h, w = features.shape
    flat = features.flatten(2)  # f d n
    unit = normalize(flat.to(torch.promote_types(flat.dtype, torch.float32)), dim=1)
    every = torch.arange(h * w, device=features.device)
    cells = [every] * count if mask is None else [torch.nonzero(m.flatten() > 0).flatten() for m in mask]
    previous = torch.full((count, h * w), -1, dtype=torch.long, device=features.device)
    following = previous.clone()
    for i, (here, there) in enumerate(pairwise(cells)):
        if len(here) and len(there):
            similarity = unit[i][:, here].T @ unit[i + 1][:, there]
            following[i, here] = _nearest(similarity, here, there)
            previous[i + 1, there] = _nearest(similarity.T, there, here)
    return Field(previous.unflatten(1, (h, w)), following.unflatten(1, (h, w)))


def _nearest(similarity: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """The best of ``there`` for each of ``here``; on a tie the same place, else the first in reading order.

    Where all candidates look alike (plain paint, a still clip) the argmin is arbitrary, and the first of them would
    move cells across the picture. Preferring the same place makes a still clip's field the identity.
    """
    best, index = similarity.max(dim=1)  # documented to be the first of equals
    at = torch.searchsorted(there, here).clamp(max=len(there) - 1)  # `there` ascends
    own = similarity.gather(1, at[:, None])[:, 0]
    stays = (there[at] == here) & (own >= best - TIE)
    return torch.where(stays, here, there[index])


def agreeing(field: Field, tolerance: int) -> Field:
    """The same field with -1 for a neighbour whose own neighbour back is over ``tolerance`` cells away, by row or
    column.

    The forward-backward check of optical flow (Sundaram et al. 2010). Every cell has a nearest other one, occluded
    cells and mere noise included; only cells visible in both frames map back to themselves. On a clip that moves by
    whole cells the two directions are each other's inverse, and all are kept.
    """
    rows, columns = field.previous.shape[1:]
    here = torch.arange(rows * columns, device=field.previous.device).view(rows, columns)

    def kept(
        there: Tensor, back: Tensor
    ) -> Tensor:  # both f h w; ``back`` is that of the frame that ``there`` points into
        home = back.flatten(1).gather(1, there.clamp(min=0).flatten(1)).view_as(there)
        off = torch.maximum((home // columns - here // columns).abs(), (home % columns - here % columns).abs())
        return torch.where((home >= 0) & (off <= tolerance), there, -1)

    return Field(
        kept(field.previous, field.following.roll(1, dims=0)), kept(field.following, field.previous.roll(-1, dims=0))
    )


def upsample(field: Field, h: int, w: int) -> Field:
    """A field on the features' grid -> on the finer latent grid `h w`, sub-cell offsets kept.

    Fine cell p, at offset o in its coarse cell P, goes to ``N[P] * scale + o``, clamped to the grid.
    """
    rows, columns = field.previous.shape[1:]
    tall, wide = scale_between(h, rows), scale_between(w, columns)
    y = torch.arange(h, device=field.previous.device)[:, None]
    x = torch.arange(w, device=field.previous.device)[None]

    def finer(coarse: Tensor) -> Tensor:
        cell = coarse[:, y // tall, x // wide]  # f h w
        row = (cell // columns * tall + y % tall).clamp(max=h - 1)
        column = (cell % columns * wide + x % wide).clamp(max=w - 1)
        return torch.where(cell < 0, cell, row * w + column)

    return Field(finer(field.previous), finer(field.following))


def scale_between(fine: int, coarse: int) -> int:
    """The power of two by which ``fine``, halved and rounded up, became ``coarse``; else ValueError."""
    scale = 1
    while -(-fine // scale) > coarse:
        scale *= 2
    if -(-fine // scale) != coarse:
        raise ValueError(f"features of side {coarse} don't fit latents of side {fine}: tap another up block")
    return scale


def coarsen(mask: Tensor, rows: int, columns: int) -> Tensor:
    """Mask `f h w` on the features' grid: a coarse cell is masked where any cell in it is."""
    scale = scale_between(mask.shape[1], rows), scale_between(mask.shape[2], columns)
    return max_pool2d(mask[:, None], scale, scale, ceil_mode=True)[:, 0]


def blend(values: Tensor, mask: Tensor, field: Field, weights: Sequence[float]) -> Tensor:
    """``w0 v_{i-1}[N-(p)] + w1 v_i[p] + w2 v_{i+1}[N+(p)]`` in the mask, ``v`` itself outside.

    ``values`` `b f c h w`, ``mask`` `f h w`, ``field`` on the same grid, shared by the batch. Where a
    neighbour is missing the weights that are left are scaled to sum 1; where none is left the cell stays.
    """
    before, own, after = weights
    ahead = ((field.previous >= 0).to(values) * before)[:, None]  # f 1 h w
    behind = ((field.following >= 0).to(values) * after)[:, None]
    total = ahead + own + behind
    earlier, later = _carried(values, field.previous, 1), _carried(values, field.following, -1)
    mixed = (ahead * earlier + own * values + behind * later) / total.where(total > 0, 1.0)
    return torch.where((mask > 0)[:, None] & (total > 0), mixed, values)


def _carried(values: Tensor, cells: Tensor, shift: int) -> Tensor:
    """``values`` `b f c h w` of the frame ``shift`` earlier, read at ``cells`` `f h w`; at -1 anything."""
    near = values.roll(shift, dims=1).flatten(3)
    index = cells.clamp(min=0).flatten(1)[None, :, None].expand_as(near)
    return near.gather(3, index).unflatten(3, cells.shape[1:])
