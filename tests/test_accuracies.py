"""All accuracies of an encoder against scikit-learn and NumPy in float64, on sets that would show a
leak.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from tiny import Flat

from ssl_jax.augment.views import make_normalise
from ssl_jax.data.dataset import Dataset, Split
from ssl_jax.errors import UserError
from ssl_jax.models import MLPHead, make_network
from ssl_jax.probes.accuracies import (
    calibrate,
    few_labels,
    make_encode,
    probe_accuracies,
    raw_pixels,
    take_features,
    validate,
)
from ssl_jax.probes.linear import PENALTIES, draw_labelled, original_probe, seed_probe

CLASSES, SIDE, SHAPE = 4, 4, (4, 4, 3)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def as_dataset(train: Split, test: Split | None, classes=CLASSES) -> Dataset:
    names = tuple(str(c) for c in range(classes))
    return Dataset("made", train, test, train, classes, names)  # pyright: ignore[reportArgumentType]


def made_images(train=700, test=90, noise=90.0) -> Dataset:
    """Overlapping classes of images; more of them than one batch of the features takes."""
    rng = np.random.default_rng(3)
    centres = rng.uniform(60, 190, (CLASSES, *SHAPE))

    def split(count):
        label = rng.integers(0, CLASSES, count).astype(np.int32)
        image = np.clip(centres[label] + noise * rng.normal(size=(count, *SHAPE)), 0, 255)
        return Split(image.astype(np.uint8), label)

    return as_dataset(split(train), split(test))


def linear_encode(params, stats, image):
    """Features that depend on all three; compiled in a moment."""
    return (image.reshape(len(image), -1) / 255 - stats[None]) @ params


def linear_variables(features=6):
    rng = np.random.default_rng(4)
    size = int(np.prod(SHAPE))
    return rng.normal(size=(size, features)).astype(np.float32), rng.uniform(size=size).astype(
        np.float32
    )


def linear_features(image) -> np.ndarray:
    params, stats = linear_variables()
    return (image.reshape(len(image), -1) / 255.0 - stats.astype(np.float64)) @ params.astype(
        np.float64
    )


def scikit_knn(bank_x, bank_y, query_x, query_y, k, temperature) -> float:
    """Cosine neighbours, weighted by exp(similarity / temperature)."""
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    )
    return model.fit(bank_x, bank_y).score(query_x, query_y)


# --- validate: which checkpoint is the best -------------------------------------------------------


@pytest.mark.parametrize(
    "size, k, temperature", [(200, 20, 0.1), (200, 5, 0.1), (200, 20, 2.0), (650, 20, 0.1)]
)
def test_validate_is_scikit_learns_on_the_last_training_images(size, k, temperature):
    train = made_images().train
    x, y = linear_features(train.image), train.label
    expected = scikit_knn(x[:-size], y[:-size], x[-size:], y[-size:], k, temperature)
    # The test images are absent: whoever looks at them fails.
    found = validate(
        linear_encode, *linear_variables(), as_dataset(train, None), size, k, temperature
    )
    assert found == pytest.approx(expected, abs=1e-12)
    leaky = scikit_knn(x, y, x[-size:], y[-size:], k, temperature)
    first = scikit_knn(x[size:], y[size:], x[:size], y[:size], k, temperature)
    assert 0.3 < expected < 0.95 and len({expected, leaky, first}) == 3


def couples(count=40):
    """Images of which the i-th and the i-th of the second half are near neighbours, and of
    different classes.
    """
    rng = np.random.default_rng(5)
    first = rng.integers(20, 230, (count, *SHAPE))
    second = first + rng.integers(-2, 3, first.shape)
    label = rng.integers(0, CLASSES, count).astype(np.int32)
    images = np.concatenate([first, second]).astype(np.uint8)
    return Split(images, np.concatenate([label, (label + 1) % CLASSES]).astype(np.int32))


def test_no_query_of_validate_is_in_the_bank():
    """The nearest neighbour of every query is of another class, but for the query itself: a leak
    would give 1.
    """
    train = couples()
    x = train.image.reshape(80, -1).astype(np.float64)
    assert scikit_knn(x, train.label, x[40:], train.label[40:], 1, 0.1) == 1.0

    def encode(params, stats, image):
        return image.reshape(len(image), -1) * params + stats

    variables = np.float32(0.01), np.float32(0)
    assert validate(encode, *variables, as_dataset(train, None), 40, 1, 0.1) == 0.0
    # A single query left in the bank would show too.
    for size in (1, 7, 39):
        assert validate(encode, *variables, as_dataset(train, None), size, 1, 0.1) == 0.0


def test_validate_refuses_more_neighbours_than_are_left_in_the_bank():
    dataset = as_dataset(made_images(train=50).train, None)
    with pytest.raises(
        UserError, match="k of the nearest neighbours: got 31, takes 1 to the 30 train features"
    ):
        validate(linear_encode, *linear_variables(), dataset, 20, 31, 0.1)
    assert 0 <= validate(linear_encode, *linear_variables(), dataset, 20, 30, 0.1) <= 1


# --- The network in evaluation mode, and its statistics -------------------------------------------


@pytest.fixture(scope="module")
def network():
    return make_network(Flat(), MLPHead(5, 3))


@pytest.fixture(scope="module")
def variables(network):
    """Weights and statistics, all random."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((2, *SHAPE)))
    rng = np.random.default_rng(6)
    params, stats = jax.tree.map(
        lambda x: rng.uniform(0.2, 1, x.shape) * rng.choice([-1, 1], x.shape), shapes
    )
    return as_float32(params), as_float32(jax.tree.map(np.abs, stats))


def as_float32(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def as_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def normalised(image) -> np.ndarray:
    return ((image / 255.0 - np.array(MEAN)) / np.array(STD)).reshape(len(image), -1)


def numpy_norm(x, mean, var, scale=1.0, bias=0.0):
    return scale * (x - mean) / np.sqrt(var + 1e-5) + bias


def numpy_statistics(params, stats, image, size: int, batches: int):
    """Running mean and biased variance of both BatchNorms: each batch replaces a tenth of what was
    there.
    """
    params, stats = as_float64((params, stats))
    encoder, projector = params["encoder"], params["projector"]
    running = {
        "encoder": dict(stats["encoder"]["norm"]["batch"]),
        "projector": dict(stats["projector"]["norm"]),
    }

    def seen(name, x):
        now = {"mean": x.mean(axis=0), "var": x.var(axis=0)}
        running[name] = {k: 0.9 * running[name][k] + 0.1 * now[k] for k in now}
        return now

    for i in range(batches):
        x = normalised(image[i * size : (i + 1) * size]) @ encoder["linear"]["kernel"]
        x = np.maximum(numpy_norm(x, **seen("encoder", x), **encoder["norm"]["batch"]), 0)
        seen("projector", x @ projector["linear1"]["kernel"] + projector["linear1"]["bias"])
    return running


def check_statistics(found, expected):
    for name, place in (
        ("encoder", found["encoder"]["norm"]["batch"]),
        ("projector", found["projector"]["norm"]),
    ):
        for moment in ("mean", "var"):
            np.testing.assert_allclose(place[moment], expected[name][moment], rtol=2e-4, atol=2e-5)


# images, limit on batches, batch size and number of batches that are to be seen
SIZES = [(300, 50, 128, 2), (300, 1, 128, 1), (128, 50, 128, 1), (50, 50, 50, 1), (700, 4, 128, 4)]


@pytest.mark.parametrize("count, limit, size, batches", SIZES)
def test_calibrate_measures_the_statistics_of_numpy(
    network, variables, count, limit, size, batches
):
    params, stats = variables
    image = made_images(train=count).train.image
    found = calibrate(network, params, stats, make_normalise(MEAN, STD), image, limit)
    check_statistics(found, numpy_statistics(params, stats, image, size, batches))


def test_calibrate_takes_at_most_fifty_batches(network, variables):
    params, stats = variables
    image = made_images(train=51 * 128).train.image
    image[50 * 128 :] = 0  # the 51st would be seen
    found = calibrate(network, params, stats, make_normalise(MEAN, STD), image)
    check_statistics(found, numpy_statistics(params, stats, image, 128, 50))
    assert jax.tree.structure(found) == jax.tree.structure(stats)


def numpy_features(variables, image) -> np.ndarray:
    """Evaluation mode: the running statistics normalise, not those of the batch."""
    params, stats = as_float64(variables)
    norm, running = params["encoder"]["norm"]["batch"], stats["encoder"]["norm"]["batch"]
    return np.maximum(
        numpy_norm(normalised(image) @ params["encoder"]["linear"]["kernel"], **running, **norm), 0
    )


def test_features_of_both_splits_are_those_of_numpy(network, variables):
    dataset = made_images(train=520, test=30)
    encode = make_encode(network, make_normalise(MEAN, STD))
    found = take_features(encode, *variables, dataset, None, {})
    assert set(found) == {"train_x", "train_y", "test_x", "test_y"}
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        expected = numpy_features(variables, split.image)
        np.testing.assert_allclose(found[f"{name}_x"], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found[f"{name}_y"], split.label)


def test_features_are_kept_until_the_fingerprint_changes(tmp_path):
    dataset, path = made_images(train=20, test=10), tmp_path / "features.npz"
    params, stats = linear_variables()
    first = take_features(linear_encode, params, stats, dataset, path, {"step": 1})
    np.testing.assert_allclose(
        first["test_x"], linear_features(dataset.test.image), rtol=1e-4, atol=1e-4
    )
    again = take_features(linear_encode, 2 * params, stats, dataset, path, {"step": 1})
    np.testing.assert_array_equal(again["train_x"], first["train_x"])
    other = take_features(linear_encode, 2 * params, stats, dataset, path, {"step": 2})
    np.testing.assert_allclose(other["train_x"], 2 * first["train_x"], rtol=1e-5)


def test_raw_pixels_are_the_images_in_0_to_1():
    dataset = made_images(train=20, test=10)
    found = raw_pixels(dataset)
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        np.testing.assert_allclose(
            found[f"{name}_x"], split.image.reshape(-1, 48) / 255.0, rtol=1e-6
        )
        np.testing.assert_array_equal(found[f"{name}_y"], split.label)
        assert found[f"{name}_x"].dtype == np.float32


# --- probe_accuracies: every accuracy -------------------------------------------------------------


def made_features(train=400, test=300, size=6, noise=1.2, seed=7) -> dict[str, np.ndarray]:
    """Overlapping Gaussian classes, columns of unequal scale."""
    rng = np.random.default_rng(seed)
    centres, scale = rng.normal(size=(CLASSES, size)), rng.uniform(0.5, 2, size)
    found = {}
    for name, count in (("train", train), ("test", test)):
        label = rng.integers(0, CLASSES, count).astype(np.int32)
        x = scale * (centres[label] + noise * rng.normal(size=(count, size)))
        found |= {f"{name}_x": x.astype(np.float32), f"{name}_y": label}
    return found


def as_data(features):
    return tuple(features[name] for name in ("train_x", "train_y", "test_x", "test_y"))


NOTHING = {
    "protocol": "seed",
    "epochs": 1,
    "loss": "softmax",
    "ridge": False,
    "newton_l2": 0.0,
    "newton_steps": 8,
    "knn_k": 20,
    "knn_temperature": 0.1,
    "seed": 0,
}


def accuracies_of(features=None, **changes) -> dict[str, float]:
    return probe_accuracies(features or made_features(), CLASSES, **(NOTHING | changes))


def scaled(features):
    """The data, standardised by the train set in float64."""
    train_x, train_y, test_x, test_y = as_data(features)
    scaler = StandardScaler().fit(train_x.astype(np.float64))
    return (
        scaler.transform(train_x.astype(np.float64)),
        train_y,
        scaler.transform(test_x.astype(np.float64)),
        test_y,
    )


def test_only_what_is_asked_for_is_judged():
    always = {"linear_accuracy", "knn_accuracy"}
    assert set(accuracies_of()) == always
    assert set(accuracies_of(ridge=True)) == always | {"ridge_accuracy"}
    assert set(accuracies_of(newton_l2=0.1)) == always | {"newton_accuracy"}
    original = {"original_last_accuracy", "original_best_test_epoch_accuracy"}
    assert (
        set(accuracies_of(protocol="original"))
        == set(accuracies_of(protocol="both"))
        == always | original
    )


@pytest.mark.parametrize("k, temperature", [(20, 0.1), (3, 0.1), (150, 0.1), (150, 5.0)])
def test_knn_accuracy_is_scikit_learns(k, temperature):
    features = made_features()
    found = accuracies_of(features, knn_k=k, knn_temperature=temperature)["knn_accuracy"]
    data = [part.astype(np.float64) if part.ndim == 2 else part for part in as_data(features)]
    assert found == pytest.approx(scikit_knn(*data, k, temperature), abs=1e-12)


def test_ridge_accuracy_is_scikit_learns():
    """The penalty by leave-one-out; columns of unit variance make the mean eigenvalue 1."""
    for seed in range(3):
        features = made_features(train=60, seed=seed)
        train_x, train_y, test_x, test_y = scaled(features)
        model = RidgeCV(alphas=60 * np.array(PENALTIES)).fit(train_x, np.eye(CLASSES)[train_y])
        expected = np.mean(model.predict(test_x).argmax(axis=1) == test_y)
        assert accuracies_of(features, ridge=True)["ridge_accuracy"] == pytest.approx(
            expected, abs=1e-12
        )
        assert 0.3 < expected < 0.95


@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_newton_accuracy_is_scikit_learns(l2):
    features = made_features(train=60)
    train_x, train_y, test_x, test_y = scaled(features)
    model = LogisticRegression(C=1 / (60 * l2), tol=1e-10, max_iter=10_000).fit(train_x, train_y)
    found = accuracies_of(features, newton_l2=l2, newton_steps=12)["newton_accuracy"]
    assert found == pytest.approx(model.score(test_x, test_y), abs=1e-12)


def test_one_newton_step_is_another_accuracy_than_twelve():
    features = made_features(train=60)
    one, many = (
        accuracies_of(features, newton_l2=1e-3, newton_steps=n)["newton_accuracy"] for n in (1, 12)
    )
    assert one != many


@pytest.mark.parametrize(
    "loss, model",
    [("softmax", LogisticRegression(C=1e6, max_iter=10_000)), ("squared", LinearRegression())],
)
def test_linear_accuracy_comes_near_the_optimum_of_its_loss(loss, model):
    """Of the classes that scikit-learn's optimum names, in a set where an untrained layer is at
    chance.
    """
    features = made_features(train=2000, test=1000)
    train_x, train_y, test_x, test_y = as_data(features)
    target = train_y if loss == "softmax" else np.eye(CLASSES)[train_y]
    named = model.fit(train_x.astype(np.float64), target).predict(test_x.astype(np.float64))
    optimum = np.mean((named if named.ndim == 1 else named.argmax(axis=1)) == test_y)
    found = accuracies_of(features, loss=loss, epochs=30)["linear_accuracy"]
    assert found == pytest.approx(optimum, abs=0.012)
    assert 0.4 < optimum < 0.95


def test_original_accuracy_comes_near_logistic_regressions():
    features = made_features(train=2000, test=1000)
    train_x, train_y, test_x, test_y = scaled(features)
    # Its decay of 1e-3 is a penalty of 1e-3 / 2 |kernel|^2 beside the mean loss.
    model = LogisticRegression(C=1 / (len(train_x) * 1e-3), max_iter=10_000).fit(train_x, train_y)
    optimum = model.score(test_x, test_y)
    found = accuracies_of(features, protocol="original", epochs=400)
    assert found["original_last_accuracy"] == pytest.approx(optimum, abs=0.012)


def test_linear_accuracies_are_those_of_their_protocols():
    """`test_probes_linear` holds both protocols to NumPy."""
    features = made_features()
    settings = {"num_classes": CLASSES, "epochs": 3, "seed": 5}
    seeded = seed_probe(*as_data(features), **settings, loss="hinge")
    original = original_probe(*as_data(features), **settings)
    both = accuracies_of(features, protocol="both", epochs=3, seed=5, loss="hinge")
    assert both["linear_accuracy"] == seeded.last_accuracy != original.last_accuracy
    assert both["original_last_accuracy"] == original.last_accuracy
    assert both["original_best_test_epoch_accuracy"] == original.best_accuracy
    assert (
        accuracies_of(features, protocol="seed", epochs=3, seed=5, loss="hinge")["linear_accuracy"]
        == seeded.last_accuracy
    )
    once = seed_probe(*as_data(features), num_classes=CLASSES, epochs=1, seed=5)
    assert (
        accuracies_of(features, epochs=1, seed=5)["linear_accuracy"]
        == once.last_accuracy
        != seeded.last_accuracy
    )
    alone = accuracies_of(features, protocol="original", epochs=3, seed=5)
    assert alone["linear_accuracy"] == alone["original_last_accuracy"] == original.last_accuracy


def test_the_last_epoch_counts_and_not_the_best():
    """Features of noise: the best epoch is one by chance, and better than the last."""
    features = made_features(noise=50.0)
    original = original_probe(*as_data(features), num_classes=CLASSES, epochs=20, seed=1)
    seeded = seed_probe(*as_data(features), num_classes=CLASSES, epochs=20, seed=1)
    assert (
        original.best_accuracy > original.last_accuracy
        and seeded.best_accuracy > seeded.last_accuracy
    )
    found = accuracies_of(features, protocol="both", epochs=20, seed=1)
    assert found["linear_accuracy"] == seeded.last_accuracy
    assert found["original_last_accuracy"] == original.last_accuracy
    assert found["original_best_test_epoch_accuracy"] == original.best_accuracy


def test_no_epochs_given_are_those_of_the_protocol():
    """The replication's 100, the original's 50, in batches of 128, or of all if there are fewer."""
    for count in (150, 90):
        features = made_features(train=count, noise=3.0)
        settings = {"num_classes": CLASSES, "seed": 0, "batch_size": min(128, count)}
        found = accuracies_of(features, protocol="both", epochs=0)
        assert (
            found["linear_accuracy"]
            == seed_probe(*as_data(features), epochs=100, **settings).last_accuracy
        )
        assert (
            found["original_last_accuracy"]
            == original_probe(*as_data(features), epochs=50, **settings).last_accuracy
        )


def test_every_accuracy_is_that_of_the_test_set():
    """Classes that are told apart without an error, under their own labels and under labels that
    are all wrong.
    """
    features = made_features(train=200, test=100, noise=0.01)
    wrong = features | {"test_y": ((features["test_y"] + 1) % CLASSES).astype(np.int32)}
    for given, expected in ((features, 1.0), (wrong, 0.0)):
        found = accuracies_of(given, protocol="both", epochs=600, ridge=True, newton_l2=1e-3)
        # of an epoch before anything was learned, where it is best
        del found["original_best_test_epoch_accuracy"]
        assert set(found.values()) == {expected}, found


# --- few_labels -----------------------------------------------------------------------------------


def scikit_few(features, per_class, draws, seed) -> np.ndarray:
    """Logistic regression with C = 1 on each of the same draws."""
    train_x, train_y, test_x, test_y = scaled(features)
    accuracies = []
    for draw in range(draws):
        chosen = draw_labelled(train_y, CLASSES, per_class, seed, draw)
        model = LogisticRegression(C=1.0, max_iter=10_000).fit(train_x[chosen], train_y[chosen])
        accuracies.append(model.score(test_x, test_y))
    return np.array(accuracies)


def test_few_labels_is_scikit_learns_on_the_same_draws():
    contenders = {
        "one": made_features(seed=1),
        "other": made_features(seed=2, size=3),
        "again": made_features(seed=1),
    }
    found = few_labels(contenders, CLASSES, 5, 6, 11)
    assert set(found) == {"labels_per_class", "draws", *contenders}
    assert (found["labels_per_class"], found["draws"]) == (5, 6)
    for name, features in contenders.items():
        expected = scikit_few(features, 5, 6, 11)
        assert found[name]["mean"] == pytest.approx(expected.mean(), abs=1e-3)
        assert found[name]["std"] == pytest.approx(
            np.sqrt(np.sum((expected - expected.mean()) ** 2) / 5), abs=1e-3
        )
    assert found["one"] == found["again"] != found["other"]
    assert found["one"] != few_labels(contenders, CLASSES, 5, 6, 12)["one"]


def test_few_labels_of_one_draw_have_no_deviation():
    features = made_features()
    found = few_labels({"one": features}, CLASSES, 5, 1, 11)["one"]
    assert (
        found["mean"] == pytest.approx(scikit_few(features, 5, 1, 11)[0], abs=1e-3)
        and found["std"] is None
    )
    first, second = scikit_few(features, 5, 2, 11)
    of_two = few_labels({"one": features}, CLASSES, 5, 2, 11)["one"]["std"]
    assert of_two == pytest.approx(abs(first - second) / np.sqrt(2), abs=1e-3)
