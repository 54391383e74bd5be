"""Randomness as a function of (seed, epoch, step): what makes a resumed run bitwise the same."""

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several non-negative integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))
