"""Which examples each step takes: a function of (seed, step, train size, batch size) alone.

Every epoch is a fresh full shuffle, cut into batches, the last partial one dropped. Processes that
decode images import this file, and no JAX.
"""

import functools

import numpy as np


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return the order in which an epoch takes the examples.

    Args:
        seed: of all shuffles.
        epoch: from 0.
        size: number of examples.

    Returns:
        A permutation of 0..size-1, (size,) int32.
    """
    return np.random.default_rng([seed, epoch]).permutation(size).astype(np.int32)


# Neighbouring steps share an epoch; the last one is kept for the chunk that straddles two.
_recent_order = functools.lru_cache(maxsize=4)(epoch_order)


def batch_indices(seed: int, step: int, size: int, batch_size: int) -> np.ndarray:
    """Return the examples of one step.

    Args:
        seed: of all shuffles.
        step: from 0, over all epochs.
        size: number of examples.
        batch_size: examples in the global batch.

    Returns:
        Indices of examples, (batch_size,) int32.
    """
    epoch, place = divmod(step, size // batch_size)
    return _recent_order(seed, epoch, size)[place * batch_size : (place + 1) * batch_size].copy()
