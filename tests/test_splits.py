"""Which images a part of a set takes: the stored order where it is as good as a draw, else a draw
by class.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import hypergeom

from ssl_jax.data import splits
from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.data.records import Options
from ssl_jax.data.sources import load_dataset
from ssl_jax.data.splits import (
    RARE,
    choose,
    draw_by_class,
    held_out_rows,
    hold_out,
    is_mixed,
    keep_labelled,
    reduce_training,
    warn_of_empty,
)
from ssl_jax.data.tfds import open_prepared
from ssl_jax.errors import UserError

REAL = Path(os.environ.get("SSL_JAX_TFDS_DIR", "not given"))


@pytest.fixture(autouse=True)
def _warnings_come_again():
    splits._warn_once.cache_clear()


def counted(label, further=0, num_classes=10) -> Dataset:
    """A set whose images are their own places in it."""
    label = np.asarray(label, np.int32)
    everything = np.concatenate([label, np.full(further, -1, np.int32)])
    image = np.arange(len(everything), dtype=np.uint8).reshape(-1, 1, 1, 1)
    train = Split(image[: len(label)], label)
    names = tuple(map(str, range(num_classes)))
    return Dataset("counted", train, train, Split(image, everything), num_classes, names)


# --- draw_by_class --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7, 50, 99, 100])
def test_a_draw_has_each_class_in_its_share(size):
    label = np.repeat([4, 7, 9, -1], [50, 30, 19, 1])
    rows = draw_by_class(label, size)
    assert rows.shape == (size,) and np.all(np.diff(rows) > 0)
    counts = np.array([np.sum(label[rows] == c) for c in (4, 7, 9, -1)])
    assert np.all(np.abs(counts - np.array([50, 30, 19, 1]) * size / 100) < 1)


def test_draws_depend_on_the_seed_and_are_uniform():
    """Each of 20 examples of a class is drawn equally often: chi-squared, 99.9 % below 43.8."""
    label = np.repeat([0, 1], 20)
    np.testing.assert_array_equal(draw_by_class(label, 10, 3), draw_by_class(label, 10, 3))
    taken = np.bincount(np.concatenate([draw_by_class(label, 10, s) for s in range(2000)]))
    assert len(taken) == 40
    # of a draw without replacement the variance is smaller than the multinomial's: by 15 of 19
    of_class = taken[:20]
    assert ((of_class - 500) ** 2 / 500).sum() * 19 / 15 < 43.8
    assert len({tuple(draw_by_class(label, 10, s)) for s in range(10)}) == 10


# --- is_mixed -------------------------------------------------------------------------------------

SORTED = {
    "ten classes": np.repeat(np.arange(10), 100),
    "two large ones": np.repeat([0, 1], 500),
    "tiny": np.array([0, 0, 1, 1, 1]),
    "falling": np.repeat(np.arange(10)[::-1], 100),
    "one moved": np.roll(np.repeat(np.arange(10), 100), 130),
    "sorted by class in each of two files": np.tile(np.repeat(np.arange(10), 50), 2),
    "labels, then none": np.repeat([0, 1, 0, 1, -1], 100),
    "none": np.full(100, -1),
    "empty": np.zeros(0, int),
}


@pytest.mark.parametrize("name", SORTED)
def test_a_set_stored_by_class_is_not_mixed(name):
    label = SORTED[name]
    for size in {1, 2, 5, len(label) // 3, len(label) // 2, len(label) - 1} if len(label) else {0}:
        for rows in (np.arange(size), np.arange(len(label) - size, len(label))):
            assert not is_mixed(label, rows), size


def test_blocks_of_a_class_are_seen_where_a_part_falls_into_one():
    """The tenths of this set have every class alike; its last fifty images are of one."""
    label = np.tile(np.repeat(np.arange(10), 50), 20)
    assert not is_mixed(label, np.arange(9950, 10_000))
    assert is_mixed(label, np.arange(9000, 10_000))


def test_a_shuffled_set_is_mixed_at_every_size():
    label = np.random.default_rng(0).permutation(
        np.repeat(np.arange(7), [400, 300, 200, 90, 9, 1, 50])
    )
    for size in {*range(20), *range(20, len(label) + 1, 5)}:
        assert is_mixed(label, np.arange(size)), size
        assert is_mixed(label, np.arange(len(label) - size, len(label))), size
    assert is_mixed(np.zeros(50, int), np.arange(10)), "one class: any part is as good"


def test_the_bound_is_one_of_the_exact_probability():
    """What the bound calls rare is rarer still by the hypergeometric distribution; far enough away
    everything is.
    """
    for whole, of_class, part in [(100, 30, 20), (1000, 100, 100), (1000, 1, 10), (50, 49, 10)]:
        total = np.array([of_class, whole - of_class])
        exact = hypergeom(whole, of_class, part)
        for x in range(max(0, part - total[1]), min(of_class, part) + 1):
            tail = min(exact.cdf(x), exact.sf(x - 1))
            rare = splits._is_rare(np.array([x, part - x]), total)
            assert not rare or tail < RARE, (whole, of_class, part, x)
            assert rare or tail > RARE**2, (whole, of_class, part, x)


# --- choose, and who uses it ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 300, 1297])
def test_digits_keep_their_published_parts(size):
    label = load_dataset("digits").train.label
    np.testing.assert_array_equal(choose(label, size), np.arange(1297)[:size])
    np.testing.assert_array_equal(choose(label, size, last=True), np.arange(1297)[1297 - size :])


def test_digits_are_mixed_at_every_size():
    label = load_dataset("digits").train.label
    for size in {*range(20), *range(0, 1298, 13), *range(1278, 1298)}:
        assert is_mixed(label, np.arange(size)), size
        assert is_mixed(label, np.arange(len(label) - size, len(label))), size


@pytest.mark.skipif(not REAL.is_dir(), reason="SSL_JAX_TFDS_DIR names no directory")
def test_cifar10_keeps_its_published_parts(tmp_path):
    raw = open_prepared("cifar10", str(REAL), Options(), [tmp_path])
    for records, count in ((raw.train, 50_000), (raw.test, 10_000)):
        assert records.labels.shape == (count,)
        for size in {*range(12), *range(0, count, 500), count - 1, count}:
            first, last = (choose(records.labels, size, last) for last in (False, True))
            np.testing.assert_array_equal(first, np.arange(size))
            np.testing.assert_array_equal(last, np.arange(count - size, count))
    assert not is_mixed(np.sort(raw.train.labels), np.arange(1000))


def test_parts_of_a_sorted_set_are_drawn_by_class_and_kept_apart():
    label = np.repeat(np.arange(10), 20)
    dataset = counted(label)
    train, held_out = hold_out(dataset, 50)
    assert np.bincount(held_out.label).tolist() == [5] * 10
    assert np.bincount(train.label).tolist() == [15] * 10
    both = np.concatenate([train.image.ravel(), held_out.image.ravel()])
    assert sorted(both.tolist()) == list(range(200))
    for split in (train, held_out):
        np.testing.assert_array_equal(label[split.image.ravel()], split.label)
    reduced = reduce_training(dataset, 50)
    assert np.bincount(reduced.train.label).tolist() == [5] * 10
    np.testing.assert_array_equal(label[reduced.train.image.ravel()], reduced.train.label)


def test_parts_of_a_mixed_set_lie_side_by_side_and_are_not_copied():
    dataset = counted(np.random.default_rng(0).integers(0, 3, 100), num_classes=3)
    train, held_out = hold_out(dataset, 30)
    assert train.image.ravel().tolist() == list(range(70))
    assert held_out.image.ravel().tolist() == list(range(70, 100))
    for part in (train, held_out, reduce_training(dataset, 10).train):
        assert np.shares_memory(part.image, dataset.train.image)
    assert hold_out(dataset, 0) == (dataset.train, None)


@pytest.mark.parametrize("count", [1, 20, 39, 40, 41, 60])
def test_fewer_training_images_begin_with_the_labelled_ones(count):
    dataset = counted(np.tile([0, 1], 20), further=20, num_classes=2)
    fewer = reduce_training(dataset, count)
    assert len(fewer.pretrain.label) == count and len(fewer.train.label) == min(count, 40)
    for a, b in zip(fewer.train, fewer.pretrain, strict=True):
        np.testing.assert_array_equal(a, b[: min(count, 40)])
    assert len(set(fewer.pretrain.image.ravel().tolist())) == count
    assert (fewer.pretrain.label[40:] == -1).all() and fewer.test is dataset.test


# --- Classes that are missing ---------------------------------------------------------------------


def test_a_part_without_a_class_costs_one_line_once(capsys):
    label = np.tile(np.arange(10), 10)
    for _ in range(2):
        assert held_out_rows(label, 4, "probe.validation_size").tolist() == [96, 97, 98, 99]
    assert capsys.readouterr().err.splitlines() == [
        "warning: probe.validation_size: the 4 held-out images lack 6 of 10 classes: "
        "0, 1, 2, 3, 4, 5"
    ]
    held_out_rows(label, 10, "probe.validation_size")
    reduce_training(counted(label), 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: data.train_size: the 3 training images lack 7 of 10 classes")


def test_a_class_that_no_image_has_is_named_once(capsys):
    dataset = counted(np.tile([1, 2], 10), num_classes=4)
    for _ in range(2):
        warn_of_empty(dataset)
    assert capsys.readouterr().err.splitlines() == [
        "warning: counted: no training image of 2 of 4 classes: 0 (0), 3 (3); "
        "few-label draws leave them out"
    ]
    warn_of_empty(counted(np.tile([0, 1], 10), num_classes=2))
    assert not capsys.readouterr().err


# --- The share of the images that keeps its labels ------------------------------------------------


def labelled(counts, seed=0):
    label = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    label = np.random.default_rng(seed).permutation(label)
    image = np.arange(len(label), dtype=np.uint8)[:, None, None, None]
    return Split(image, label)


def test_a_share_of_the_labels_is_that_share_of_every_class():
    train = labelled((100, 60, 40))
    kept = keep_labelled(train, 0.1, seed=3)
    assert np.bincount(kept.label).tolist() == [10, 6, 4]
    # each label is that of its own image
    np.testing.assert_array_equal(train.label[kept.image[:, 0, 0, 0]], kept.label)
    again, other = keep_labelled(train, 0.1, seed=3), keep_labelled(train, 0.1, seed=4)
    np.testing.assert_array_equal(again.image, kept.image)
    assert not np.array_equal(other.image, kept.image)
    more = keep_labelled(train, 0.5, seed=3)
    assert set(kept.image.ravel()) < set(more.image.ravel())
    assert keep_labelled(train, 1.0, seed=3) is train


def test_a_share_that_leaves_a_class_without_an_example_is_refused():
    train = labelled((197, 3))
    line = r"data.labelled_share: got 0.1, 20 of 200 training images, which leaves none of class 1"
    with pytest.raises(UserError, match=f"^{line}; takes at least 0.333, one example of each"):
        keep_labelled(train, 0.1, seed=0)
    assert np.bincount(keep_labelled(train, 0.334, seed=0).label).min() == 1
