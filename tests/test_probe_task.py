"""All probes of a trained encoder, beside the untrained one and raw pixels: whose features they
judge, with what.
"""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from tiny import noisy_views

from ssl_jax.augment.views import make_normalise
from ssl_jax.builders import pretraining
from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.probes.accuracies import make_encode
from ssl_jax.probes.label_free import COLUMNS, make_measure
from ssl_jax.probes.linear import few_label_probe, ridge_probe, seed_probe
from ssl_jax.probes.newton import newton_probe
from ssl_jax.tasks.probe import run_probes

CONFIGS = Path(__file__).parent.parent / "configs"
FIELDS = {
    "encoder.name": "mlp",
    "encoder.width": 12,
    "encoder.depth": 1,
    "encoder.norm": "batch",
    "seed": 3,
}
FIELDS |= {"projector.hidden": 8, "projector.out": 4, "predictor.hidden": 8}
FIELDS |= {"probe.epochs": 2, "probe.few_labels": 3, "probe.few_label_draws": 4, "probe.knn_k": 7}


def made_dataset() -> Dataset:
    """300 training images, two batches of 128 and a rest, and 90 test images of four overlapping
    classes.
    """
    rng = np.random.default_rng(3)
    centres = rng.uniform(60, 190, (4, 8, 8, 1))

    def split(count):
        label = rng.integers(0, 4, count).astype(np.int32)
        image = np.clip(centres[label] + 150 * rng.normal(size=(count, 8, 8, 1)), 0, 255)
        return Split(image.astype(np.uint8), label)

    train, test = split(300), split(90)
    return Dataset("made", train, test, train, 4, tuple("abcd"))


class Probed:
    """run_probes of one trained and one fresh state, with all that it was given."""

    def __init__(self, out: Path, change=lambda found: None, **fields):
        self.out, self.dataset = out, made_dataset()
        self.config = runpy.run_path(str(CONFIGS / "quickstart.py"))["get_config"]()
        self.config.update_from_flattened_dict(FIELDS | fields)
        parts = pretraining.build(self.config, 10, 1, None)
        self.recipe = parts.recipe
        init = pretraining.make_init(parts, self.dataset.description)
        self.fresh = jax.device_get(pretraining.fresh_state(self.config, init))
        rng = np.random.default_rng(4)
        params, stats = jax.tree.map(
            lambda x: x + rng.uniform(0.1, 0.5, x.shape).astype(x.dtype), self.fresh[1:3]
        )
        self.trained = self.fresh._replace(step=np.int32(17), params=params, stats=stats)
        change(self)
        encode = make_encode(parts.network, make_normalise(self.recipe.mean, self.recipe.std))
        self.result, self.features = run_probes(
            self.config,
            self.recipe,
            trained=self.trained,
            fresh=self.fresh,
            dataset=self.dataset,
            encode=encode,
            measure=make_measure(parts.network, noisy_views, jax.random.key(1)),
            out=out,
        )

    def normalised(self, image) -> np.ndarray:
        return ((image / 255.0 - self.recipe.mean[0]) / self.recipe.std[0]).reshape(len(image), -1)

    def before_norm(self, params, image) -> np.ndarray:
        layer = params["encoder"]["linear1"]
        return self.normalised(image) @ np.float64(layer["kernel"]) + np.float64(layer["bias"])

    def numpy_features(self, params, mean, var, image) -> np.ndarray:
        norm = params["encoder"]["norm1"]["batch"]
        x = (self.before_norm(params, image) - mean) / np.sqrt(var + 1e-5)
        return np.maximum(x * np.float64(norm["scale"]) + np.float64(norm["bias"]), 0)

    def kept(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.out / "features" / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in ("train_x", "train_y", "test_x", "test_y")}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    return Probed(tmp_path_factory.mktemp("probed"))


def as_data(features):
    return tuple(features[name] for name in ("train_x", "train_y", "test_x", "test_y"))


def test_the_features_are_those_of_the_trained_encoder(probed):
    running = probed.trained.stats["encoder"]["norm1"]["batch"]
    for name, split in (("train", probed.dataset.train), ("test", probed.dataset.test)):
        expected = probed.numpy_features(
            probed.trained.params, running["mean"], running["var"], split.image
        )
        np.testing.assert_allclose(probed.features[f"{name}_x"], expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(probed.features[f"{name}_y"], split.label)
    kept = probed.kept("step-17")
    for name, array in probed.features.items():
        np.testing.assert_array_equal(kept[name], array)


def test_the_untrained_encoder_has_measured_statistics(probed):
    """Two batches of 128, each of which replaces a tenth of (0, 1)."""
    mean, var = 0.0, 1.0
    for i in range(2):
        x = probed.before_norm(
            probed.fresh.params, probed.dataset.train.image[i * 128 : (i + 1) * 128]
        )
        mean, var = 0.9 * mean + 0.1 * x.mean(axis=0), 0.9 * var + 0.1 * x.var(axis=0)
    kept = probed.kept("random-init")
    for name, split in (("train", probed.dataset.train), ("test", probed.dataset.test)):
        expected = probed.numpy_features(probed.fresh.params, mean, var, split.image)
        np.testing.assert_allclose(kept[f"{name}_x"], expected, rtol=1e-3, atol=1e-3)


def test_every_accuracy_is_that_of_its_encoder(probed):
    """By the run's own seed, epochs and neighbours."""
    settings = {"num_classes": 4, "epochs": 2, "seed": 3}
    for prefix, features in (("", probed.features), ("random_init_", probed.kept("random-init"))):
        data = as_data(features)
        model = KNeighborsClassifier(
            7, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1)
        )
        knn = model.fit(data[0].astype(np.float64), data[1]).score(
            data[2].astype(np.float64), data[3]
        )
        assert probed.result[f"{prefix}knn_accuracy"] == pytest.approx(knn, abs=1e-12)
        assert (
            probed.result[f"{prefix}linear_accuracy"] == seed_probe(*data, **settings).last_accuracy
        )
        assert (
            probed.result[f"{prefix}ridge_accuracy"] == ridge_probe(*data, num_classes=4).accuracy
        )
    assert probed.result["knn_accuracy"] != probed.result["random_init_knn_accuracy"]
    assert probed.result["probe_seconds"] > 0


def test_the_measures_are_those_of_each_encoder_on_the_test_images(probed):
    parts = pretraining.build(probed.config, 10, 1, None)
    measure = make_measure(parts.network, noisy_views, jax.random.key(1))
    found = measure(probed.trained.params, probed.trained.stats, probed.dataset.test.image)
    assert {name: probed.result[name] for name in COLUMNS} == pytest.approx(found, rel=1e-4)
    assert (probed.result["label_free_split"], probed.result["label_free_images"]) == ("test", 90)
    for name in COLUMNS:
        assert probed.result[f"random_init_{name}"] != probed.result[name]


def test_few_labels_are_the_same_for_all_contenders(probed):
    train, test = probed.dataset.train, probed.dataset.test
    flat = {
        "train_x": train.image.reshape(300, -1) / 255,
        "test_x": test.image.reshape(90, -1) / 255,
    }
    pixels = flat | {"train_y": train.label, "test_y": test.label}
    contenders = {
        "pretrained": probed.features,
        "random_init": probed.kept("random-init"),
        "raw_pixels": pixels,
    }
    table = probed.result["few_label"]
    assert set(table) == {"labels_per_class", "draws", *contenders}
    for name, features in contenders.items():
        settings = {"num_classes": 4, "labels_per_class": 3, "draws": 4, "seed": 3}
        accuracy = few_label_probe(*as_data(features), **settings)
        assert table[name]["mean"] == pytest.approx(accuracy.mean(), abs=1e-3)
        assert table[name]["std"] == pytest.approx(accuracy.std(ddof=1), abs=1e-3)


def test_the_probes_have_a_seed_of_their_own_and_nothing_more_than_is_asked_for(
    probed, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, "process_index", lambda *backend: 1)  # which writes nothing
    fields = {
        "probe.seed": 5,
        "probe.random_init": False,
        "probe.few_labels": 0,
        "probe.ridge": False,
    }
    own = Probed(tmp_path, **fields)
    measured = {*COLUMNS, "label_free_split", "label_free_images"}
    assert set(own.result) == {"linear_accuracy", "knn_accuracy", "probe_seconds"} | measured
    assert (
        own.result["linear_accuracy"]
        == seed_probe(*as_data(own.features), num_classes=4, epochs=2, seed=5)[0]
    )
    assert own.result["linear_accuracy"] != probed.result["linear_accuracy"]
    assert list(tmp_path.iterdir()) == []


def test_every_field_of_the_probes_arrives(tmp_path):
    fields = {
        "probe.protocol": "both",
        "probe.newton_l2": 0.1,
        "probe.newton_steps": 2,
        "probe.loss": "squared",
    }
    fields |= {
        "probe.random_init": False,
        "probe.knn_k": 60,
        "probe.knn_temperature": 0.005,
        "probe.epochs": 30,
    }
    found = Probed(tmp_path, **fields)
    data = as_data(found.features)
    settings = {"num_classes": 4, "epochs": 30, "seed": 3}
    squared, other = (
        seed_probe(*data, **settings, loss=loss).last_accuracy for loss in ("squared", "softmax")
    )
    assert found.result["linear_accuracy"] == squared != other
    bank, query = (x.astype(np.float64) for x in data[::2])
    knn = {}
    # No two classes are nearly tied at 0.005: by 7e-4 at least, where float32 errs by 1e-5.
    for t in (0.1, 0.005):
        model = KNeighborsClassifier(
            60, metric="cosine", algorithm="brute", weights=lambda d, t=t: np.exp(-d / t)
        )
        knn[t] = model.fit(bank, data[1]).score(query, data[3])
    assert (
        found.result["knn_accuracy"] == pytest.approx(knn[0.005], abs=1e-12)
        and knn[0.005] != knn[0.1]
    )
    newton = newton_probe(*data, num_classes=4, l2=0.1, steps=2).last_accuracy
    assert found.result["newton_accuracy"] == newton
    assert {"original_last_accuracy", "original_best_test_epoch_accuracy"} <= set(found.result)


def test_features_of_other_weights_are_not_read_back(tmp_path):
    """Of the same step in the same directory: whose they are decides, and nothing else is computed
    anew.
    """
    fields = {"probe.random_init": False, "probe.few_labels": 0}
    first, other = (Probed(tmp_path, **fields | {"seed": seed}) for seed in (3, 4))
    assert np.abs(first.features["test_x"] - other.features["test_x"]).max() > 0.1
    path = tmp_path / "features" / "step-17.npz"
    before = path.stat().st_mtime_ns
    Probed(tmp_path, **fields | {"seed": 4})
    assert path.stat().st_mtime_ns == before


CHANGES = {
    "corrected training labels": lambda found: correct(found.dataset.train.label),
    "corrected test labels": lambda found: correct(found.dataset.test.label),
    "another training image": lambda found: found.dataset.train.image.__setitem__((0, 0, 0), 7),
    "another test image": lambda found: found.dataset.test.image.__setitem__((-1, 7, 7), 7),
    "permuted weights": lambda found: permute(found.trained.params["encoder"]),
    "permuted statistics": lambda found: permute(found.trained.stats),
}


def correct(label: np.ndarray) -> None:
    label[-1] = (label[-1] + 1) % 4


def permute(tree) -> None:
    """Reverse every array within itself: the sum of the absolute values stays."""
    for leaf in jax.tree.leaves(tree):
        leaf[...] = leaf.ravel()[::-1].reshape(leaf.shape)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.slow
def test_features_of_anything_else_are_not_read_back(tmp_path, change):
    """Afterwards the features are those of a fresh directory, bit for bit."""
    fields = {"probe.random_init": False, "probe.few_labels": 0}
    before = Probed(tmp_path / "kept", **fields)
    after = [Probed(tmp_path / name, change=change, **fields) for name in ("kept", "fresh")]
    for name, kept in after[0].features.items():
        np.testing.assert_array_equal(kept, after[1].features[name])
    assert any((before.features[n] != x).any() for n, x in after[0].features.items())


@pytest.mark.slow
def test_features_of_another_normalisation_or_network_are_not_read_back(tmp_path):
    fields = {"probe.random_init": False, "probe.few_labels": 0}
    others = {"views.mean": (0.3,)}, {"views.std": (0.4,)}, {"encoder.activation": "tanh"}
    features = [Probed(tmp_path, **fields | other).features["test_x"] for other in ({}, *others)]
    for other in features[1:]:
        assert np.abs(features[0] - other).max() > 1e-3
