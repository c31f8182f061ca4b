"""Two arrays have one digest if they are the same bits in the same place, and only then."""

import jax.numpy as jnp
import numpy as np

from ssl_jax.digests import array_digest, tree_digest


def test_every_bit_counts():
    array = np.float32([0.0, -1.5, np.nan])
    others = [array.reshape(1, 3), array.view(np.int32), -array, array[::-1], array[:2]]
    others += [np.float32(1), np.float32([1]), np.zeros(0), np.zeros((0, 3)), np.zeros(0, np.int8)]
    others += [np.zeros(2, jnp.bfloat16), np.zeros(2, np.float16)]
    digests = [array_digest(np.asarray(each)) for each in (array, *others)]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 32 for digest in digests)


def test_every_place_counts():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((30, 40), (7,)))
    least = b.copy()
    least[3] = np.nextafter(b[3], np.float32(9))  # the least change that a weight can make
    trees = [
        {"a": a, "b": b},
        {"a": a, "b": least},
        {"a": a, "b": b[::-1]},
        {"a": a, "c": b},
        {"a": a.T, "b": b},
        {"a": a.reshape(40, 30), "b": b},
        {"a": a, "b": b.view(np.int32)},
        {"a": a},
        {"a": a, "b": b, "c": np.zeros(0)},
    ]
    assert len({tree_digest(tree) for tree in trees}) == len(trees)
    assert tree_digest(trees[0]) == tree_digest({"b": b.copy(), "a": np.asfortranarray(a)})
