"""Nearest neighbours against NumPy in float64 and scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from ssl_jax.errors import UserError
from ssl_jax.probes import knn


def problem(bank=400, queries=300, features=16, classes=5, noise=1.5):
    """Overlapping Gaussian classes, features not of unit norm: bank_x, bank_y, query_x, query_y."""
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(classes, features))
    sets = []
    for count in (bank, queries):
        label = rng.integers(0, classes, count).astype(np.int32)
        length = rng.uniform(0.1, 10, (count, 1))
        sets += [
            (length * (centres[label] + noise * rng.normal(size=(count, features)))).astype(
                np.float32
            )
        ]
        sets += [label]
    return sets


def numpy_scores(bank_x, bank_y, query_x, classes, k, temperature):
    bank, query = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank_x * 1.0, query_x * 1.0)
    )
    similarity = query.astype(np.float64) @ bank.astype(np.float64).T
    scores = np.zeros((len(query), classes))
    for row, values in enumerate(similarity):
        for i in np.argsort(-values)[:k]:
            scores[row, bank_y[i]] += np.exp(values[i] / temperature)
    return scores


@pytest.mark.parametrize(
    "k, temperature", [(1, 0.1), (20, 0.1), (200, 0.1), (400, 0.02), (50, 5.0)]
)
def test_predictions_equal_numpy_in_float64(k, temperature):
    bank_x, bank_y, query_x, query_y = problem()
    scores = numpy_scores(bank_x, bank_y, query_x, 5, k, temperature)
    found = np.asarray(knn._predict(bank_x, bank_y, query_x, 5, k, temperature))
    np.testing.assert_array_equal(found, scores.argmax(axis=1))
    accuracy = knn.knn_accuracy(
        bank_x, bank_y, query_x, query_y, num_classes=5, k=k, temperature=temperature
    )
    assert accuracy == np.mean(scores.argmax(axis=1) == query_y)
    assert 0.5 < accuracy < 1


def test_accuracy_equals_scikit_learn_and_weights_matter():
    bank_x, bank_y, query_x, query_y = problem()
    reference = {}
    for name, weights in {"vote": lambda d: np.exp((1 - d) / 0.1), "equal": "uniform"}.items():
        model = KNeighborsClassifier(
            n_neighbors=200, metric="cosine", algorithm="brute", weights=weights
        )
        reference[name] = model.fit(bank_x, bank_y).score(query_x, query_y)
    assert knn.knn_accuracy(bank_x, bank_y, query_x, query_y, num_classes=5) == pytest.approx(
        reference["vote"]
    )
    assert reference["vote"] != reference["equal"]


def dominated(name):
    """Digits whose features one direction dominates, or that float32 cannot square."""
    digits = load_digits()
    x, y = digits.data, digits.target.astype(np.int32)
    sign = np.random.default_rng(0).choice([-1, 1], (len(x), 1))
    x = {
        "constant 300": lambda: x + 300,
        "constant 1000": lambda: x + 1000,
        "one column": lambda: np.concatenate([x, np.full((len(x), 1), 1e4)], axis=1),
        "one column of either sign": lambda: np.concatenate([x, 1e4 * sign], axis=1),
        "huge": lambda: 1e36 * x,
        "tiny": lambda: 1e-38 * x,
        "every scale": lambda: x * 10.0 ** np.linspace(-30, 30, len(x))[:, None],
    }[name]()
    x = np.float32(x)
    return x[:1200], y[:1200], x[1200:], y[1200:]


DOMINATED = (
    "constant 300, constant 1000, one column, one column of either sign, huge, tiny, every scale"
)


@pytest.mark.parametrize("name", DOMINATED.split(", "))
def test_one_direction_that_dominates_and_numbers_of_any_size(name):
    """scikit-learn in float64; its own norm squares each number, so that rows are scaled first."""
    bank_x, bank_y, query_x, query_y = dominated(name)
    wide = [
        x / np.abs(x).max(axis=1, keepdims=True) for x in (np.float64(bank_x), np.float64(query_x))
    ]
    for k in (1, 20, 200):
        model = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1)
        ).fit(wide[0], bank_y)
        found = knn._predict(bank_x, bank_y, query_x, 10, k, 0.1)
        expected = model.predict(wide[1])
        assert np.sum(found != expected) <= 1  # classes whose votes are equal in float64
        if k == 1:
            assert np.mean(expected == query_y) > 0.9  # there is much to lose


def test_bank_finds_itself_with_one_neighbour():
    bank_x, bank_y, _, _ = problem()
    assert knn.knn_accuracy(bank_x, bank_y, bank_x, bank_y, num_classes=5, k=1) == 1.0


def test_zero_features_have_cosine_zero_with_everything():
    bank_x, bank_y, query_x, _ = problem()
    bank_y[:150] = 3  # the majority
    bank_x[0], query_x[0] = 0, 0
    found = np.asarray(knn._predict(bank_x, bank_y, query_x, 5, 400, 0.1))
    assert found[0] == 3  # all votes of a zero query are equal
    assert set(found) == set(range(5))  # the zero vote in the bank spoils no other


def test_temperature_near_zero_neither_overflows_nor_ties():
    similarity, label = jnp.array([0.9, 0.8, 0.7]), jnp.array([2, 1, 1])
    assert knn.vote(similarity, label, 3, 1e-3) == 2  # the nearest alone
    assert knn.vote(similarity, label, 3, 1e3) == 1  # the majority


def test_random_labels_give_chance():
    bank_x, _, query_x, _ = problem(queries=1000)
    rng = np.random.default_rng(3)
    bank_y, query_y = rng.integers(0, 5, 400), rng.integers(0, 5, 1000)
    accuracy = knn.knn_accuracy(bank_x, bank_y, query_x, query_y, num_classes=5, k=20)
    assert abs(accuracy - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 1000)


@pytest.mark.parametrize(
    "change", [{"k": 401}, {"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(UserError, match=f"got {next(iter(change.values()))}, takes"):
        knn.knn_accuracy(*problem(), num_classes=5, **change)
