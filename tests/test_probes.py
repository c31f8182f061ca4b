"""Features: extraction in padded batches, the cache on disk, and the checks before any probe."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ssl_jax.errors import UserError
from ssl_jax.probes import features, knn, label_free, linear
from ssl_jax.runtime import stops


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)


def channel_means(scale: jax.Array, image: jax.Array) -> jax.Array:
    return scale * image.astype(jnp.float32).mean(axis=(1, 2))


@pytest.mark.parametrize("count, batch_size", [(1, 4), (3, 4), (8, 4), (10, 4), (10, 500)])
def test_extract_does_not_depend_on_the_padding(count, batch_size):
    image = images(count)
    found = features.extract(Partial(channel_means, jnp.float32(0.5)), image, batch_size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 0.5 * image.mean(axis=(1, 2)), rtol=1e-6)


def many_queries():
    x = np.random.default_rng(0).normal(size=(600, 3))
    return knn.knn_accuracy(x, np.arange(600) % 2, x, np.arange(600) % 2, num_classes=2, k=3)


def all_measures():
    x = np.random.default_rng(0).normal(size=(40, 2, 12))
    return label_free.measure_views(x, x)


# Work of an evaluation, and how many parts it has: a stop is obeyed before each.
PARTS = {
    "features": (lambda: features.extract(Partial(channel_means, 1.0), images(10), 4), 3),
    "nearest neighbours": (many_queries, 3),
    "measures": (all_measures, 2),
}


@pytest.mark.parametrize("work, parts", PARTS.values(), ids=PARTS)
def test_a_stop_is_asked_for_before_every_part(work, parts, monkeypatch):
    asked = []

    def check():
        asked.append(1)
        if len(asked) > parts:
            raise stops.Stopped

    monkeypatch.setattr(stops, "check", check)
    work()
    assert len(asked) == parts
    with pytest.raises(stops.Stopped):
        work()


def test_extract_compiles_one_program_for_all_batches_and_all_variables():
    traces = []

    def apply(scale, image):
        traces.append(image.shape)
        return channel_means(scale, image)

    for scale in (1.0, 2.0):
        features.extract(Partial(apply, jnp.float32(scale)), images(10), 4)
    assert traces == [(4, 4, 5, 3)]


def test_extract_takes_a_plain_function_and_returns_float32():
    found = features.extract(
        lambda image: channel_means(jnp.float32(1), image).astype(jnp.bfloat16), images(3)
    )
    assert found.dtype == np.float32 and found.shape == (3, 3)


@pytest.mark.parametrize("count, batch_size", [(0, 4), (4, 0)])
def test_extract_refuses_to_do_nothing(count, batch_size):
    with pytest.raises(UserError, match=f"got {count} images in batches of {batch_size}"):
        features.extract(Partial(channel_means, jnp.float32(1)), images(count), batch_size)


class Counted:
    """Computes the same arrays each time and counts the calls."""

    calls = 0

    def __call__(self):
        self.calls += 1
        return {"x": np.arange(600, dtype=np.float32).reshape(100, 6), "y": np.arange(100)}


def test_cache_is_read_back_until_the_fingerprint_changes(tmp_path, capsys):
    path, compute = tmp_path / "deep" / "features.npz", Counted()
    for order in ({"step": 1, "set": "a"}, {"set": "a", "step": 1}):
        found = features.cached_features(path, order, compute)
        np.testing.assert_equal(found, Counted()())
    assert compute.calls == 1
    np.testing.assert_equal(
        features.cached_features(path, {"set": "a", "step": 2}, compute), Counted()()
    )
    assert compute.calls == 2
    assert capsys.readouterr().err == ""
    assert [file.name for file in path.parent.iterdir()] == ["features.npz"]


def damages(sound: bytes) -> dict[str, bytes]:
    middle = bytearray(sound)
    middle[len(sound) // 2] ^= 1
    renamed = sound.replace(b"x.npy", b"z.npy")  # names have no checksum
    return {
        "empty": b"",
        "text": b"not a file of arrays",
        "cut": sound[:-40],
        "one bit": bytes(middle),
        "name": renamed,
    }


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "one bit", "name"])
def test_damaged_cache_is_computed_again_with_one_line(tmp_path, capsys, kind):
    path, compute = tmp_path / "features.npz", Counted()
    features.cached_features(path, {}, compute)
    path.write_bytes(damages(path.read_bytes())[kind])
    np.testing.assert_equal(features.cached_features(path, {}, compute), Counted()())
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error and "damaged" in error
    features.cached_features(path, {}, compute)
    assert compute.calls == 2


def test_failed_write_leaves_the_old_cache_and_nothing_else(tmp_path, monkeypatch, capsys):
    path = tmp_path / "features.npz"
    features.cached_features(path, {"step": 1}, Counted())
    before = path.read_bytes()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    found = features.cached_features(path, {"step": 2}, Counted())
    np.testing.assert_equal(found, Counted()())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(path) in error and "not kept" in error


@pytest.mark.parametrize("kind", ["directory", "loop", "dangling link", "link to another file"])
def test_what_stands_in_the_place_of_features_stops_nothing(tmp_path, capsys, kind):
    path, other = tmp_path / "deep" / "features.npz", tmp_path / "other"
    path.parent.mkdir()
    if kind == "directory":
        path.mkdir()
    else:
        target = {"loop": path, "dangling link": tmp_path / "no", "link to another file": other}
        path.symlink_to(target[kind])
        other.write_text("not to be written")
    compute = Counted()
    for _ in range(2):
        np.testing.assert_equal(features.cached_features(path, {}, compute), Counted()())
    assert compute.calls == 1 and path.is_file() and not path.is_symlink()
    assert capsys.readouterr().err.count("\n") == (kind != "dangling link")
    assert kind == "directory" or other.read_text() == "not to be written"


PROBES = {
    "seed": lambda *data: linear.seed_probe(*data, num_classes=2, epochs=1, batch_size=2, seed=0),
    "original": lambda *data: linear.original_probe(
        *data, num_classes=2, epochs=1, batch_size=2, seed=0
    ),
    "ridge": lambda *data: linear.ridge_probe(*data, num_classes=2),
    "few labels": lambda *data: linear.few_label_probe(
        *data, num_classes=2, labels_per_class=1, draws=1, seed=0
    ),
    "nearest neighbours": lambda *data: knn.knn_accuracy(*data, num_classes=2, k=2),
}


def small_problem() -> list[np.ndarray]:
    x = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    y = np.array([0, 1] * 4, np.int32)
    return [x.copy(), y.copy(), x.copy(), y.copy()]


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())
@pytest.mark.parametrize("place, name", [(0, "train"), (2, "test")])
def test_every_probe_refuses_features_that_are_not_finite(probe, place, name):
    data = small_problem()
    data[place][5, 1], data[place][7] = np.inf, np.nan
    with pytest.raises(
        UserError, match=f"{name} features: got 4 .* in 2 of 8 rows, .* row 5, column 1"
    ):
        probe(*data)


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())
@pytest.mark.parametrize("place, name", [(1, "train"), (3, "test")])
@pytest.mark.parametrize("label", [-1, 2])
def test_every_probe_refuses_labels_outside_the_classes(probe, place, name, label):
    data = small_problem()
    data[place][[4, 6]] = label
    with pytest.raises(
        UserError, match=f"{name} labels: got 2 .* first {label} at row 4; takes 0 to 1"
    ):
        probe(*data)


def test_no_examples_are_refused():
    with pytest.raises(UserError, match="test features: got 0"):
        features.check_examples("test", np.zeros((0, 3)), np.zeros(0, np.int32), 2)


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())
def test_every_probe_survives_collapsed_features(probe):
    """All features equal: a finite answer at chance, which for two equal classes is one half."""
    _, y, _, _ = small_problem()
    x = np.full((8, 3), 0.7, np.float32)
    result = probe(x, y, x, y)
    accuracy = getattr(result, "last_accuracy", getattr(result, "accuracy", result))
    np.testing.assert_array_equal(accuracy, 0.5)
