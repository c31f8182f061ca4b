"""Linear probes against Adam written in NumPy, scikit-learn, and properties of the protocols."""

import itertools

import jax
import numpy as np
import pytest
from scipy.optimize import linprog
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from ssl_jax.errors import UserError
from ssl_jax.probes import linear

CLASSES = 3


def problem(train=300, test=200, features=8, noise=2.0, seed=0):
    """Overlapping Gaussian classes, columns of unequal scale and mean: train_x, train_y, test_x,
    test_y.
    """
    rng = np.random.default_rng(seed)
    centres, scale, shift = rng.normal(size=(CLASSES, features)), rng.uniform(0.5, 2, features), 0.3
    sets = []
    for count in (train, test):
        label = rng.integers(0, CLASSES, count).astype(np.int32)
        x = shift + scale * (centres[label] + noise * rng.normal(size=(count, features)))
        sets += [x.astype(np.float32), label]
    return sets


def softmax_loss(kernel, bias, x, y):
    """Mean cross-entropy and its gradient by kernel and bias, float64."""
    scores = x @ kernel + bias
    scores -= scores.max(axis=1, keepdims=True)
    probability = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    loss = -np.log(probability[np.arange(len(y)), y]).mean()
    error = (probability - np.eye(CLASSES)[y]) / len(y)
    return loss, [x.T @ error, error.sum(axis=0)]


def numpy_adam(start, batches, rate, epsilon, decay):
    """Kingma and Ba's Adam, decay added to the gradient; rate(t) of t = 0, 1, ...; yields (weights,
    loss).
    """
    weights = [np.array(w, np.float64) for w in start]
    first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for t, (x, y) in enumerate(batches):
        loss, gradients = softmax_loss(*weights, x.astype(np.float64), y)
        for i, gradient in enumerate(gradients):
            gradient = gradient + decay * weights[i]
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            unbiased = first[i] / (1 - 0.9 ** (t + 1)), second[i] / (1 - 0.999 ** (t + 1))
            weights[i] = weights[i] - rate(t) * unbiased[0] / (np.sqrt(unbiased[1]) + epsilon)
        yield [w.copy() for w in weights], loss


def seed_rate(total):
    return lambda t: 5e-4 + (5e-2 - 5e-4) * (1 - t / total) ** 2


STEPS = 20
PROTOCOLS = {
    "seed": (linear.seed_optimizer(STEPS), seed_rate(STEPS), 1e-7, 0.0),
    "original": (linear.original_optimizer(), lambda t: 3e-4, 1e-8, 1e-3),
}


@pytest.mark.parametrize(
    "optimizer, rate, epsilon, decay", PROTOCOLS.values(), ids=PROTOCOLS.keys()
)
def test_update_equals_numpy_for_the_first_steps(optimizer, rate, epsilon, decay):
    x, y, _, _ = problem()
    now = linear.uniform_linear(jax.random.key(1), x.shape[1], CLASSES)
    memory, step = optimizer.init(now), jax.jit(linear.update, static_argnums=0)
    batches = [(x[i * 15 :][:15], y[i * 15 :][:15]) for i in range(STEPS)]
    for (x, y), (expected, expected_loss) in zip(
        batches, numpy_adam(now, batches, rate, epsilon, decay), strict=True
    ):
        now, memory, loss = step(optimizer, now, memory, x, y, np.ones(len(y), bool))
        for found, wanted in zip(now, expected, strict=True):  # a thousandth of one step of Adam
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3 * rate(0))
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)


def numpy_probe(init, data, rate, epsilon, decay, *, epochs, batch_size, drop_last, seed):
    """A whole probe of the same start and shuffles: losses and accuracies of each epoch."""
    x, y, test_x, test_y = data
    start, keys = linear._start(init, x.shape[1], CLASSES, epochs, seed)
    count = len(x) // batch_size if drop_last else int(np.ceil(len(x) / batch_size))
    orders = [np.asarray(linear.epoch_order(key, len(x), count, batch_size)) for key in keys]
    batches = [(x[row[row >= 0]], y[row[row >= 0]]) for order in orders for row in order]
    weights, losses = zip(*numpy_adam(start, batches, rate, epsilon, decay), strict=True)
    last = weights[count - 1 :: count]
    accuracy = [np.mean((test_x @ kernel + bias).argmax(axis=1) == test_y) for kernel, bias in last]
    return np.reshape(losses, (epochs, count)).mean(axis=1), accuracy


def test_seed_probe_equals_numpy_without_the_last_partial_batch():
    data = problem(train=100)
    found = linear.seed_probe(*data, num_classes=CLASSES, epochs=3, batch_size=30, seed=4)
    loss, accuracy = numpy_probe(
        linear.glorot_linear,
        data,
        seed_rate(9),
        1e-7,
        0,
        epochs=3,
        batch_size=30,
        drop_last=True,
        seed=4,
    )
    np.testing.assert_allclose(found.loss, loss, rtol=1e-4)
    np.testing.assert_allclose(found.accuracy, accuracy, atol=1e-12)


def test_original_probe_equals_numpy_with_the_last_partial_batch_on_standardised_features():
    data = problem(train=100)
    found = linear.original_probe(*data, num_classes=CLASSES, epochs=4, batch_size=30, seed=4)
    mean, deviation = data[0].mean(axis=0, dtype=np.float64), data[0].std(axis=0, dtype=np.float64)
    scaled = [(data[0] - mean) / deviation, data[1], (data[2] - mean) / deviation, data[3]]
    loss, accuracy = numpy_probe(
        linear.uniform_linear,
        scaled,
        lambda t: 3e-4,
        1e-8,
        1e-3,
        epochs=4,
        batch_size=30,
        drop_last=False,
        seed=4,
    )
    np.testing.assert_allclose(found.loss, loss, rtol=1e-4)
    np.testing.assert_allclose(found.accuracy, accuracy, atol=1e-12)


def test_result_tells_the_last_epoch_from_the_best():
    found = linear._result((np.array([1.5, 0.5, 0.75]), np.array([1, 4, 3])), 5)
    assert found == linear.ProbeResult(0.6, 0.8, [0.2, 0.8, 0.6], [1.5, 0.5, 0.75])


def test_seed_schedule_at_its_ends_and_middle():
    """Adam's first step is the rate times the gradient's sign, which shows the rate at t = 0."""
    for total, t, expected in [
        (100, 0, 5e-2),
        (100, 100, 5e-4),
        (100, 50, 5e-4 + 4.95e-2 / 4),
        (7, 7, 5e-4),
    ]:
        assert seed_rate(total)(t) == pytest.approx(expected)
    gradient = {"w": np.array([3.0, -2.0], np.float32)}
    for total in (1, 100):
        optimizer = linear.seed_optimizer(total)
        change, state = optimizer.update(gradient, optimizer.init(gradient))
        np.testing.assert_allclose(change["w"], [-5e-2, 5e-2], rtol=1e-5)
        # a constant gradient keeps mean / sqrt(mean square) at its sign
        for t in range(1, total + 1):
            change, state = optimizer.update(gradient, state)
            assert -change["w"][0] == pytest.approx(seed_rate(total)(t), rel=1e-3)


@pytest.mark.parametrize("drop_last, steps", [(True, 3), (False, 4)])
def test_each_epoch_is_a_new_full_shuffle(drop_last, steps):
    assert linear.epoch_steps(100, 1, 30, drop_last) == steps
    first, second = (
        np.asarray(linear.epoch_order(key, 100, steps, 30))
        for key in jax.random.split(jax.random.key(0))
    )
    for order in (first, second):
        real = order[order >= 0]
        assert len(np.unique(real)) == len(real) == min(100, steps * 30)
        assert (order.ravel()[len(real) :] == -1).all()
    assert (first != second).any()


def test_initial_layers_have_the_ranges_of_keras_and_pytorch():
    features, classes = 600, 40
    keras = linear.glorot_linear(jax.random.key(0), features, classes)
    bound = np.sqrt(6 / (features + classes))
    assert 0.99 * bound < np.abs(keras.kernel).max() <= bound and not keras.bias.any()
    torch = linear.uniform_linear(jax.random.key(0), features, classes)
    bound = 1 / np.sqrt(features)
    assert 0.99 * bound < np.abs(torch.kernel).max() <= bound
    assert 0.8 * bound < np.abs(torch.bias).max() <= bound


def test_seed_probe_reaches_the_optimum_of_logistic_regression():
    data = problem(train=3000, test=1000)
    found = linear.seed_probe(*data, num_classes=CLASSES, epochs=30, seed=0)
    model = LogisticRegression(C=1e6, max_iter=1000).fit(data[0].astype(np.float64), data[1])
    optimum = log_loss(data[1], model.predict_proba(data[0]))
    assert found.loss[-1] == pytest.approx(optimum, abs=0.01)
    assert found.last_accuracy == pytest.approx(model.score(data[2], data[3]), abs=0.01)
    assert 0.6 < found.last_accuracy < 0.95  # neither trivial nor hopeless


@pytest.mark.parametrize("probe", [linear.seed_probe, linear.original_probe])
def test_the_seed_decides_everything(probe):
    data = problem()
    first, again, other = (
        probe(*data, num_classes=CLASSES, epochs=2, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again and first.loss != other.loss


@pytest.mark.parametrize("probe", [linear.seed_probe, linear.original_probe])
@pytest.mark.parametrize("change", [{"epochs": 0}, {"batch_size": 301}, {"batch_size": 0}])
def test_impossible_sizes_are_refused(probe, change):
    with pytest.raises(UserError, match=f"got {next(iter(change.values()))}, takes"):
        probe(*problem(), num_classes=CLASSES, seed=0, **change)


@pytest.mark.parametrize("place", [0, 2])
def test_features_whose_squares_overflow_are_refused(place):
    data = problem()
    data[place] = data[place] * np.float32(1e20)
    with pytest.raises(UserError, match="got values up to [0-9]e.2[01], the linear probe takes"):
        linear.seed_probe(*data, num_classes=CLASSES, epochs=1, seed=0)


def test_the_largest_features_are_learned_from():
    data = problem(noise=0.1)
    for place in (0, 2):
        data[place] *= np.float32(linear.LARGEST) / np.abs(data[place]).max()
    largest = max(np.abs(data[place]).max() for place in (0, 2))
    assert largest == pytest.approx(linear.LARGEST, rel=1e-6)
    for place in (0, 2):  # below it, as float32 rounds
        data[place] *= np.float32(0.999)
    result = linear.seed_probe(*data, num_classes=CLASSES, epochs=20, seed=0)
    assert result.last_accuracy > 0.95 and np.isfinite(result.loss).all()


@pytest.mark.parametrize("penalty", [1e-5, 0.1, 10.0])
@pytest.mark.parametrize("count", [300, 6])  # six examples of eight features: a singular covariance
def test_ridge_equals_scikit_learn(penalty, count):
    x, y, test_x, test_y = problem(train=count)
    one_hot, scaled = np.eye(CLASSES)[y], linear.standardise(x.astype(np.float64), test_x)
    spectrum = linear.ridge_spectrum(scaled[0], one_hot)
    alpha = penalty * spectrum.eigenvalues.mean() * count
    model = Ridge(alpha=alpha).fit(scaled[0], one_hot)
    np.testing.assert_allclose(
        linear.ridge_kernel(spectrum, penalty), model.coef_.T, rtol=1e-6, atol=1e-9
    )
    found = linear.ridge_probe(x, y, test_x, test_y, num_classes=CLASSES, penalties=[penalty])
    assert found.penalty == penalty
    assert found.accuracy == np.mean(model.predict(scaled[1]).argmax(axis=1) == test_y)


def test_no_eigenvalue_of_a_covariance_is_negative():
    """Of features whose covariance is singular, rounding makes some so."""
    x = np.random.default_rng(0).normal(size=(40, 4)) * 1e4
    x = np.concatenate([x, x, x], axis=1)
    x -= x.mean(axis=0)
    assert np.linalg.eigvalsh(x.T @ x / len(x)).min() < 0
    assert linear.ridge_spectrum(x, np.eye(40)[:, :2]).eigenvalues.min() >= 0


@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_leave_one_out_error_equals_refitting(penalty):
    x, y, _, _ = problem(train=25)
    (x,), one_hot = linear.standardise(x.astype(np.float64)), np.eye(CLASSES)[y]
    spectrum, errors = linear.ridge_spectrum(x, one_hot), []
    for i in range(len(x)):
        kept = np.arange(len(x)) != i
        model = Ridge(alpha=penalty * spectrum.eigenvalues.mean() * len(x)).fit(
            x[kept], one_hot[kept]
        )
        errors.append(np.sum((model.predict(x[i : i + 1])[0] - one_hot[i]) ** 2))
    assert linear.leave_one_out_error(spectrum, one_hot, penalty) == pytest.approx(
        np.mean(errors), rel=1e-9
    )


@pytest.mark.parametrize("noise, count", [(2.0, 300), (6.0, 60), (20.0, 60)])
def test_ridge_chooses_the_penalty_that_scikit_learn_chooses(noise, count):
    x, y, test_x, test_y = problem(train=count, noise=noise)
    found = linear.ridge_probe(x, y, test_x, test_y, num_classes=CLASSES)
    # unit columns: the mean eigenvalue is 1
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    model = RidgeCV(alphas=np.array(linear.PENALTIES) * count).fit(scaled, np.eye(CLASSES)[y])
    assert found.penalty == pytest.approx(model.alpha_ / count)


@pytest.mark.parametrize("penalties", [[], [0.0], [1.0, -1.0]])
def test_ridge_refuses_penalties_that_are_not_positive(penalties):
    with pytest.raises(UserError, match="above 0"):
        linear.ridge_probe(*problem(), num_classes=CLASSES, penalties=penalties)


def test_standardise_uses_the_train_set_alone_and_leaves_constant_columns_finite():
    train = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    train[:, 2] = 0.1
    found, other = linear.standardise(train, train + np.float32(1))
    deviation = train.std(axis=0, dtype=np.float64)
    deviation[2] = 1
    np.testing.assert_allclose(found, (train - train.mean(axis=0)) / deviation, atol=1e-5)
    np.testing.assert_allclose(
        other - found, np.broadcast_to(1 / deviation, other.shape), rtol=1e-4
    )


def test_few_label_draws_depend_on_seed_and_draw_but_never_on_features(monkeypatch):
    drawn, real = [], linear.draw_labelled
    monkeypatch.setattr(
        linear, "draw_labelled", lambda *args: drawn.append(real(*args)) or drawn[-1]
    )
    train_x, train_y, test_x, test_y = problem()
    settings = {"num_classes": CLASSES, "labels_per_class": 4, "draws": 3}
    for scale, seed in ((1, 0), (-7, 0), (1, 1)):
        linear.few_label_probe(
            scale * train_x**3, train_y, scale * test_x**3, test_y, seed=seed, **settings
        )
    np.testing.assert_array_equal(drawn[:3], drawn[3:6])
    assert len(np.unique(drawn, axis=0)) == 6  # three draws of two seeds all differ
    for index in drawn:
        assert len(np.unique(index)) == 12
        np.testing.assert_array_equal(np.bincount(train_y[index]), [4, 4, 4])


def test_few_label_probe_equals_scikit_learn_on_one_draw_and_learns_from_labels():
    train_x, train_y, test_x, test_y = problem(noise=1.0)
    settings = {"num_classes": CLASSES, "draws": 4, "seed": 5}
    few, more = (
        linear.few_label_probe(train_x, train_y, test_x, test_y, labels_per_class=n, **settings)
        for n in (1, 30)
    )
    assert few.shape == (4,) and few.mean() < more.mean()
    scaler, index = StandardScaler().fit(train_x), linear.draw_labelled(train_y, CLASSES, 30, 5, 2)
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(train_x)[index], train_y[index])
    assert more[2] == pytest.approx(model.score(scaler.transform(test_x), test_y))


def test_few_label_probe_refuses_more_labels_than_a_class_has():
    train_x, _, test_x, test_y = problem(train=60)
    train_y = np.repeat([0, 1, 2], [30, 5, 25]).astype(np.int32)
    with pytest.raises(UserError, match="got 6, takes 1 to 5, as class 1"):
        linear.few_label_probe(
            train_x,
            train_y,
            test_x,
            test_y,
            num_classes=CLASSES,
            labels_per_class=6,
            draws=1,
            seed=0,
        )


def test_random_labels_give_chance():
    """A binomial with p = 1/3 leaves four standard deviations once in 16 000 times."""
    train_x, _, test_x, _ = problem(train=600, test=1000)
    rng = np.random.default_rng(6)
    train_y, test_y = rng.integers(0, CLASSES, 600), rng.integers(0, CLASSES, 1000)
    data, classes = (train_x, train_y, test_x, test_y), {"num_classes": CLASSES}
    found = [
        linear.seed_probe(*data, **classes, epochs=5, seed=0).last_accuracy,
        linear.original_probe(*data, **classes, epochs=5, seed=0).last_accuracy,
        linear.ridge_probe(*data, **classes).accuracy,
        linear.few_label_probe(*data, **classes, labels_per_class=50, draws=1, seed=0)[0],
    ]
    np.testing.assert_allclose(found, 1 / 3, atol=4 * np.sqrt(2 / 9 / 1000))


# --- Losses other than the softmax's --------------------------------------------------------------


def least_hinge(x, y):
    """The least mean Crammer-Singer loss of a linear layer: a linear program in kernel, bias and
    slacks.

    min sum_i xi_i / N  with  xi_i >= 0  and  xi_i >= 1 + s_ij - s_iy for every j other than y.
    """
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    (count, size), rows = x.shape, []
    for i, j in itertools.product(range(count), range(CLASSES)):
        if j != y[i]:
            scores = np.zeros((CLASSES, size))
            scores[j], scores[y[i]] = x[i], -x[i]
            rows.append(np.concatenate([scores.ravel(), -np.eye(count)[i]]))
    cost = np.concatenate([np.zeros(CLASSES * size), np.full(count, 1 / count)])
    bounds = [(None, None)] * (CLASSES * size) + [(0, None)] * count
    return linprog(cost, np.array(rows), -np.ones(len(rows)), bounds=bounds).fun


def least_squares(x, y):
    ones = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    kernel = np.linalg.lstsq(ones, np.eye(CLASSES)[y], rcond=None)[0]
    return 0.5 * np.sum((ones @ kernel - np.eye(CLASSES)[y]) ** 2) / len(x)


@pytest.mark.parametrize("loss, optimum", [("hinge", least_hinge), ("squared", least_squares)])
def test_seed_probe_reaches_the_optimum_of_its_loss(loss, optimum):
    train_x, train_y, test_x, test_y = problem(train=256)
    data = (*linear.standardise(train_x), train_y, *linear.standardise(test_x), test_y)
    found = linear.seed_probe(
        *data, num_classes=CLASSES, epochs=60, batch_size=64, seed=0, loss=loss
    )
    assert found.loss[-1] == pytest.approx(optimum(data[0], train_y), rel=0.03)
    assert 0.6 < found.last_accuracy < 0.95


def test_an_unknown_loss_is_told_the_known_ones():
    with pytest.raises(
        UserError, match=r"loss of the linear probe: got 'hing', did you mean 'hinge'\?"
    ):
        linear.seed_probe(*problem(), num_classes=CLASSES, seed=0, loss="hing")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean, spread", [(1e4, 0.01), (300, 0.03), (0, 1e36), (0, 1e-30)])
def test_standardise_keeps_the_digits_of_both_sets(dtype, mean, spread):
    """float64 NumPy on what float32 holds; the test set comes in float32 either way."""
    rng = np.random.default_rng(0)
    train, test = (np.float32(mean + spread * rng.normal(size=(n, 5))) for n in (400, 50))
    wide = np.float64(train)
    got = linear.standardise(train.astype(dtype), test)
    for one, x in zip(got, (train, test), strict=True):
        assert one.dtype == dtype
        expected = (np.float64(x) - wide.mean(0)) / wide.std(0)
        np.testing.assert_allclose(one, expected, rtol=1e-6, atol=1e-6)
