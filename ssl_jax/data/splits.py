"""Training images held out, and labels drawn anew."""

import numpy as np

from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.errors import UserError


def hold_out(dataset: Dataset, size: int) -> tuple[Split, Split | None]:
    """Return the training images without the last `size`, and those last ones; None for 0."""
    check_held_out(size, len(dataset.train.label))
    if size == 0:
        return dataset.train, None
    first, last = (
        [part[cut] for part in dataset.train] for cut in (slice(None, -size), slice(-size, None))
    )
    return Split(*first), Split(*last)


def check_held_out(size: int, count: int) -> None:
    """Raise UserError where `size` of `count` training images cannot be held out."""
    if not 0 <= size < count:
        raise UserError(
            f"data.validation_size: got {size}, takes 0 to less than the {count} training images"
        )


def redraw(label: np.ndarray, share: float, num_classes: int, seed: int) -> np.ndarray:
    """Return a copy in which each label is drawn anew with probability `share`.

    At share 1 these are the random labels of Zhang et al. 2017 (arXiv 1611.03530).

    Args:
        label: (N,) int32.
        share: probability in 0..1.
        num_classes: a new label is uniform over 0..num_classes - 1.
        seed: of the draws.

    Returns:
        (N,) int32.
    """
    rng = np.random.default_rng([seed, 0x1ABE1])
    drawn = rng.integers(0, num_classes, len(label), dtype=np.int32)
    return np.where(rng.random(len(label)) < share, drawn, label)


def draw_by_class(label: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """Draw `size` examples, of each class its share of the whole, rounded by largest remainder.

    Args:
        label: (N,) integers; -1, no label, is a class like any other here.
        size: number of examples, 0 to N.
        seed: of the draw.

    Returns:
        Their places in 0..N-1, in increasing order, (size,) int64.
    """
    rng = np.random.default_rng([seed, 0x5B117])
    order = rng.permutation(len(label))
    classes, counts = np.unique(label, return_counts=True)
    exact = counts * (size / max(len(label), 1))
    taken = np.floor(exact).astype(int)
    taken[np.argsort(taken - exact, kind="stable")[: size - taken.sum()]] += 1
    of_class = (order[label[order] == c][:n] for c, n in zip(classes, taken, strict=True))
    return np.sort(np.concatenate([np.zeros(0, np.int64), *of_class]))
