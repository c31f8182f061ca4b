"""Parts of a set: training images held out, fewer of them, and labels drawn anew.

Every part that a configuration asks for by a number goes through `choose`.
"""

import functools
from typing import Any

import numpy as np

from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.data.records import RawSet, part
from ssl_jax.errors import UserError
from ssl_jax.runtime.terminal import warn

RARE = 1e-6  # probability of a count of a class below which an order is no draw


def choose(label: np.ndarray, size: int, last: bool = False, seed: int = 0) -> np.ndarray:
    """Choose `size` examples as the first or the last of the stored order, or by a draw.

    The stored order decides where it is as good as a draw (`is_mixed`), so that published splits
    stay what they are. Of a set stored by class, and of one without labels, examples are drawn by
    class.

    Args:
        label: (N,) integers, -1 for no label.
        size: number of examples, 0 to N.
        last: whether the last of the stored order are taken, or the first.
        seed: of the draw.

    Returns:
        Their places in 0..N-1, in increasing order, (size,) int64.
    """
    rows = np.arange(len(label) - size, len(label)) if last else np.arange(size)
    return rows if is_mixed(label, rows) else draw_by_class(label, size, seed)


def is_mixed(label: np.ndarray, rows: np.ndarray) -> bool:
    """Return whether the stored order of a set, and these rows of it, are as good as a draw.

    They are not where labels never decrease, or where no example has one, or where the count of a
    class in `rows`, or in the first tenth, two tenths, ... of the set, is one that a random draw
    reaches with a probability below `RARE`. A count of x in n draws without replacement from a set
    in which a class has the share p has a probability of at most exp(-n KL(x/n || p)) to be so far
    from n p (Hoeffding 1963, theorems 1 and 4).

    Args:
        label: (N,) integers, -1 for no label.
        rows: (n,) places in 0..N-1.

    Returns:
        Whether they are; true for a set of one class.
    """
    if (classes := np.unique(label)).size < 2:
        return bool(classes.size) and classes[0] >= 0
    if np.all(label[1:] >= label[:-1]):
        return False
    of_class = np.searchsorted(classes, label)
    total = np.bincount(of_class)
    tenths = (np.arange(len(label) * i // 10) for i in range(1, 10))
    parts = (np.bincount(of_class[part], minlength=len(total)) for part in (rows, *tenths))
    return not any(_is_rare(count, total) for count in parts)


def _is_rare(count: np.ndarray, total: np.ndarray) -> bool:
    """Return whether a class has a count in a part that a draw of `total` (K,) hardly gives."""
    part, whole = count.sum(), total.sum()
    # the same bound for the examples that the part leaves, and with class and part exchanged
    exponents = [
        n * _divergence(x / np.maximum(n, 1), share)
        for n, x, share in (
            (part, count, total / whole),
            (whole - part, total - count, total / whole),
            (total, count, part / whole),
            (whole - total, part - count, part / whole),
        )
    ]
    return bool(np.max(exponents) > -np.log(RARE))


def _divergence(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return KL(x || p) of Bernoulli variables; where p is 0 or 1, x is, too."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one, none = (np.where(a > 0, a * np.log(a / b), 0) for a, b in ((x, p), (1 - x, 1 - p)))
    return one + none


def test_count(count: int, share: float) -> int:
    """Return the number of `count` images that are drawn as the test split, at least one."""
    if count < 2 or share <= 0:
        raise UserError(
            f"data.test_share: got {share:g} of {count} images without a test split, takes a share "
            "above 0 of at least 2 images"
        )
    return min(max(1, round(count * share)), count - 1)


def draw_test(label: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw the test split of a set that has none, by class and by seed 0.

    Args:
        label: (N,) integers.
        share: of the images, `data.test_share`.

    Returns:
        The places of the training images and those of the test images, in increasing order.
    """
    tested = draw_by_class(label, test_count(len(label), share))
    warn_of_missing(label, tested, f"data.test_share: the {len(tested)} test images")
    return np.delete(np.arange(len(label)), tested), tested


def take(split: Split, rows: np.ndarray) -> Split:
    """Return these rows, in increasing order; no image is copied where they lie side by side."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        rows_or_slice: np.ndarray | slice = slice(int(rows[0]), int(rows[-1]) + 1)
    else:
        rows_or_slice = rows
    image: Any = split.image
    image = image.select(rows) if hasattr(image, "select") else image[rows_or_slice]
    return Split(image, split.label[rows_or_slice])


def held_out_rows(label: np.ndarray, size: int, field: str) -> np.ndarray:
    """Return the rows of the training images that are held out: `choose`, the last ones.

    Args:
        label: (N,) of the training images.
        size: number of images, as `field` gives it.
        field: of the configuration, for the line of warning where they lack a class.

    Returns:
        Their places, in increasing order, (size,) int64.
    """
    rows = choose(label, size, last=True)
    warn_of_missing(label, rows, f"{field}: the {size} held-out images")
    return rows


def hold_out(dataset: Dataset, size: int) -> tuple[Split, Split | None]:
    """Return the training images that are left, and `size` held out; None for 0."""
    label = dataset.train.label
    check_held_out(size, len(label))
    if size == 0:
        return dataset.train, None
    rows = held_out_rows(label, size, "data.validation_size")
    left = np.delete(np.arange(len(label)), rows)
    warn_of_missing(label, left, f"data.validation_size: the {len(left)} images that are left")
    return take(dataset.train, left), take(dataset.train, rows)


def reduce_training(dataset: Dataset, count: int) -> Dataset:
    """Return `dataset` with `count` of its images for pretraining: `choose`, the first ones.

    Images with a label come first: all `count` are among them where there are so many.
    """
    labelled = len(dataset.train.label)
    rows = choose(dataset.train.label, min(count, labelled))
    warn_of_missing(dataset.train.label, rows, f"data.train_size: the {len(rows)} training images")
    train, further = take(dataset.train, rows), dataset.pretrain.label[labelled:]
    more = labelled + choose(further, max(count - labelled, 0))
    return dataset._replace(
        train=train,
        pretrain=take(dataset.pretrain, np.concatenate([rows, more])) if len(more) else train,
    )


def labelled_count(count: int, share: float) -> int:
    """Return how many of `count` training images have a label that is used, at least one."""
    return max(1, round(count * share))


def keep_labelled(
    train: Split, share: float, seed: int, field: str = "data.labelled_share"
) -> Split:
    """Return the images of `train` that keep their labels, drawn by class.

    Runs of one seed on the same training images have the same ones, and those of a smaller share
    are among those of a larger one, but for the rounding of a class's count.

    Args:
        train: images and labels, none of them held out.
        share: of each class, `data.labelled_share`.
        seed: of the draw.
        field: that the share is given in, for the message.

    Returns:
        The images that are drawn.

    Raises:
        UserError: a class would have no example.
    """
    if share == 1:
        return train
    rows = draw_by_class(train.label, labelled_count(len(train.label), share), seed)
    classes, counts = np.unique(train.label, return_counts=True)
    if lacking := sorted(set(classes.tolist()) - set(train.label[rows].tolist())):
        # of the rarest class, whose part of a draw is its share of the whole
        least = 1 / counts.min()
        raise UserError(
            f"{field}: got {share:g}, {len(rows)} of {len(train.label)} training "
            f"images, which leaves none of class {lacking[0]}; takes at least {least:.3g}, one "
            "example of each class"
        )
    return take(train, rows)


def reduce_records(raw: RawSet, count: int) -> RawSet:
    """Return an undecoded set with the images for pretraining that `reduce_training` keeps."""
    known = raw.train.labels
    label = np.full(len(raw.train.names), -1, np.int32) if known is None else known
    rows, more = choose(label, min(count, len(label))), max(count - len(label), 0)
    warn_of_missing(label, rows, f"data.train_size: the {len(rows)} training images")
    unlabelled = raw.unlabelled
    if unlabelled is not None:
        further = choose(np.full(len(unlabelled.names), -1, np.int32), more)
        unlabelled = part(unlabelled, further) if more else None
    return raw._replace(train=part(raw.train, rows), unlabelled=unlabelled)


def warn_of_missing(label: np.ndarray, rows: np.ndarray, what: str) -> None:
    """Print one line, once in a process, where these rows lack a class that the set has.

    Args:
        label: (N,) integers of the set.
        rows: (n,) places in 0..N-1.
        what: names the rows: "data.train_size: the 20 training images".
    """
    whole, part = (np.unique(labels[labels >= 0]) for labels in (label, label[rows]))
    if missing := sorted(set(whole.tolist()) - set(part.tolist())):
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        _warn_once(f"{what} lack {len(missing)} of {len(whole)} classes: {shown}")


def warn_of_empty(dataset: Dataset) -> None:
    """Print one line, once in a process, where a class has no training image.

    EMNIST's letters have none of label 0. Such classes are left out of few-label draws.
    """
    empty = sorted(set(range(dataset.num_classes)) - set(np.unique(dataset.train.label).tolist()))
    if empty:
        names = ", ".join(f"{c} ({dataset.label_names[c]})" for c in empty[:10])
        more = ", ..." if len(empty) > 10 else ""
        _warn_once(
            f"{dataset.name}: no training image of {len(empty)} of {dataset.num_classes} classes: "
            f"{names}{more}; few-label draws leave them out"
        )


@functools.cache
def _warn_once(line: str) -> None:
    warn(line)


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
