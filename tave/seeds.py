"""One seed for each use of randomness, derived from the run's seed."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *use: object) -> int:
    """Return an integer in [0, 2**63) for ``use``, which names what is drawn (and where, for instance the step).

    Two uses of one run's seed never share their random numbers: start noise and condition noise would otherwise be
    equal to the bit.
    """
    text = "/".join(str(part) for part in (seed, *use))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, *use: object) -> torch.Generator:
    """Return a CPU generator seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *use))
