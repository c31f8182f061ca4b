"""scikit-learn's 8x8 digits: a set that needs no download."""

import functools
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from ssl_jax.data.cache import cache_roots, load_or_build
from ssl_jax.data.dataset import Dataset, Description, Split
from ssl_jax.data.pictures import fit_square
from ssl_jax.errors import UserError

TRAIN, TEST, SIDE = 1297, 500, 8  # images, images, pixels


def describe_digits(image_size: int | None) -> Description:
    """Return the description of the digits, without importing scikit-learn."""
    side = image_size or SIDE
    return Description("digits", TRAIN, TEST, TRAIN, (side, side, 1), 10, tuple("0123456789"))


def digits_version() -> str:
    """Return what decides about the digits' pixels: the version of scikit-learn."""
    return f"scikit-learn-{importlib.metadata.version('scikit-learn')}"


def read_digits(cache_dir: str | None, image_size: int | None) -> Dataset:
    """Return the 1797 8x8 digits of scikit-learn.

    They are the test part of UCI "Optical Recognition of Handwritten Digits". Pixels 0..16 become
    round(255 x / 16). 500 images, stratified by class, are the test split: rows of
    `train_test_split(..., test_size=500, random_state=0)`, whose shuffled order counts as the
    official one.
    """
    about = describe_digits(image_size)
    sizes = (("train", about.train), ("test", about.test))
    train, test = (_cached_digits(split, count, about.side, cache_dir) for split, count in sizes)
    return Dataset(about.name, train, test, train, about.num_classes, about.label_names)


def _cached_digits(split: str, count: int, side: int, cache_dir: str | None) -> Split:
    """Return a split of the digits, from the cache where there is one.

    The cache saves the second that scikit-learn takes to import. Without a place for it the split
    is decoded each time.
    """
    source = f"digits {digits_version()} {side}x{side}"
    stem, shape = f"{source.replace(' ', '-')}/{split}", (count, side, side, 1)
    decode = functools.partial(_decode_digits, split, side)
    try:
        return Split(*load_or_build(cache_roots(cache_dir), stem, source, shape, decode))
    except (UserError, OSError):  # nowhere to write
        image, label = zip(*decode(), strict=True)
        return Split(np.stack(image), np.array(label, np.int32))


def _decode_digits(split: str, side: int) -> Iterator[tuple]:
    """Yield (image, label) of a split of the digits in the official order."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    stored: Any = load_digits()
    rows = train_test_split(
        np.arange(len(stored.images)), test_size=TEST, random_state=0, stratify=stored.target
    )
    for row in rows[("train", "test").index(split)]:
        pixels = np.rint(stored.images[row] * (255 / 16)).astype(np.uint8)
        yield fit_square(Image.fromarray(pixels), side)[..., None], stored.target[row]
