"""Random streams of a run.

Every draw is a function of (seed, purpose, position): a generator is made anew for each purpose and each position (epoch
and chunk), so that no stream depends on how often another was used, on the other runs of a cohort, or on where a run was
interrupted. There is no generator state to save.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed for one stream at one position.

    CUDA's generators use all of it, torch's CPU generator the low 32 bits: of 1,000 seeds two share a stream with
    probability 1e-4, of 10,000 with 1e-2.
    """
    text = "/".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *position: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for one stream ('order', 'noise', 'binarize', 'validation', 'evaluation') at one position."""
    return torch.Generator(device=device).manual_seed(derive(seed, purpose, *position))


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block and restore it after: parameter initialisation needs it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, purpose))
        yield
