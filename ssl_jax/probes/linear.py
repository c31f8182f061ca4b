"""Linear classification of frozen features: two published protocols, ridge, and few labels.

Features are (N, F) float32, labels (N,) integers in [0, num_classes). Accuracies are fractions in
[0, 1]. Nothing is chosen on the test set except `ProbeResult.best_accuracy`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax.errors import UserError, nearest
from ssl_jax.losses import LOSSES
from ssl_jax.probes.features import check_examples


class Linear(NamedTuple):
    """The parameters of a linear layer."""

    kernel: jax.Array  # (F, num_classes)
    bias: jax.Array  # (num_classes,)


class ProbeResult(NamedTuple):
    """The result of a probe that is trained in epochs or steps."""

    last_accuracy: float  # on the test set after the last epoch: the number to report
    best_accuracy: float  # on the test set of its best epoch: optimistic
    accuracy: list[float]  # on the test set after each epoch
    # On the train set, the mean over the steps of each epoch. By default cross-entropy in nats.
    loss: list[float]


class RidgeResult(NamedTuple):
    """The result of `ridge_probe`."""

    accuracy: float  # on the test set
    penalty: float  # the chosen one, in units of the mean eigenvalue of the train covariance


LARGEST = 1e18  # of raw features: their squares stay below float32's 3e38

# --- Gradient descent: the two published protocols ------------------------------------------------


def seed_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    num_classes: int,
    epochs: int = 100,
    batch_size: int = 128,
    seed: int,
    loss: str = "softmax",
) -> ProbeResult:
    """Run the replication paper's protocol: raw features, Adam from 5e-2 to 5e-4, the last epoch.

    Kernel and bias start as Keras does. Each epoch is a new shuffle without its last partial batch.

    Args:
        train_x: features (N, F).
        train_y: labels (N,), integers.
        test_x: features (M, F).
        test_y: labels (M,), integers.
        num_classes: number of classes.
        epochs: at least 1.
        batch_size: 1 to N.
        seed: of the start and the shuffles.
        loss: a key of `losses.LOSSES`. The paper has softmax cross-entropy.

    Returns:
        Accuracies and losses. The paper reports `last_accuracy`.

    Raises:
        UserError: an argument is unknown or out of its range, or a feature is not finite or above
            `LARGEST`.
    """
    _check(train_x, train_y, test_x, test_y, num_classes)
    if (most := max(float(np.max(np.abs(x))) for x in (train_x, test_x))) > LARGEST:
        raise UserError(
            f"features: got values up to {most:.1g}, the linear probe takes at most {LARGEST:.0g}: "
            "Adam squares their gradients in float32; the encoder's outputs have run away"
        )
    if loss not in LOSSES:
        raise UserError(f"loss of the linear probe: got {loss!r}, {nearest(loss, LOSSES)}")
    steps = epoch_steps(len(train_x), epochs, batch_size, drop_last=True)
    linear, order_keys = _start(glorot_linear, train_x.shape[1], num_classes, epochs, seed)
    optimizer, train, test = seed_optimizer(epochs * steps), (train_x, train_y), (test_x, test_y)
    return _result(
        _fit(optimizer, linear, order_keys, train, test, steps, batch_size, loss), len(test_y)
    )


def original_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    num_classes: int,
    epochs: int = 50,
    batch_size: int = 128,
    seed: int,
) -> ProbeResult:
    """Run the protocol of the DirectPred authors' code: standardised features, Adam 3e-4.

    arXiv:2102.06810. Mean and deviation are those of the train set. Kernel and bias start as
    PyTorch's do, and both decay. The last partial batch is used.

    Args:
        train_x: features (N, F).
        train_y: labels (N,), integers.
        test_x: features (M, F).
        test_y: labels (M,), integers.
        num_classes: number of classes.
        epochs: at least 1.
        batch_size: 1 to N.
        seed: of the start and the shuffles.

    Returns:
        Accuracies and losses. The authors published `best_accuracy`.

    Raises:
        UserError: an argument is out of its range, or a feature is not finite.
    """
    _check(train_x, train_y, test_x, test_y, num_classes)
    steps = epoch_steps(len(train_x), epochs, batch_size, drop_last=False)
    linear, order_keys = _start(uniform_linear, train_x.shape[1], num_classes, epochs, seed)
    train_x, test_x = standardise(train_x, test_x)
    train, test = (train_x, train_y), (test_x, test_y)
    return _result(
        _fit(original_optimizer(), linear, order_keys, train, test, steps, batch_size), len(test_y)
    )


def _check(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    num_classes: int,
) -> None:
    check_examples("train", train_x, train_y, num_classes)
    check_examples("test", test_x, test_y, num_classes)


def _start(
    init: Callable[[jax.Array, int, int], Linear],
    features: int,
    num_classes: int,
    epochs: int,
    seed: int,
) -> tuple[Linear, jax.Array]:
    """Draw the initial layer, and one key for the shuffle of each epoch."""
    init_key, order_key = jax.random.split(jax.random.key(seed))
    return init(init_key, features, num_classes), jax.random.split(order_key, epochs)


def glorot_linear(key: jax.Array, features: int, num_classes: int) -> Linear:
    """Draw a layer as Keras does: kernel U(+-sqrt(6 / (features + num_classes))), bias 0.

    Args:
        key: a typed random key.
        features: number of features, F.
        num_classes: number of classes.

    Returns:
        The layer, float32.
    """
    kernel = jax.nn.initializers.glorot_uniform()(key, (features, num_classes))
    return Linear(kernel, jnp.zeros(num_classes))


def uniform_linear(key: jax.Array, features: int, num_classes: int) -> Linear:
    """Draw a layer as PyTorch does: kernel and bias U(+-1 / sqrt(features)).

    Args:
        key: a typed random key.
        features: number of features, F.
        num_classes: number of classes.

    Returns:
        The layer, float32.
    """
    draw = jax.random.uniform(key, (features + 1, num_classes), minval=-1, maxval=1) / features**0.5
    return Linear(draw[:-1], draw[-1])


@functools.cache  # one optimizer object, hence one compiled program, for equal arguments
def seed_optimizer(total_steps: int) -> optax.GradientTransformation:
    """Return Adam with the rate 5e-4 + (5e-2 - 5e-4) (1 - t/T)^2 at step t of T = total_steps.

    t counts from 0. Epsilon is Keras's 1e-7. Keras adds it before it corrects the bias of the
    second moment, Optax after. The difference is a factor sqrt(1 - 0.999^t) on an epsilon far below
    any gradient that matters.
    """
    return optax.adam(optax.polynomial_schedule(5e-2, 5e-4, 2, total_steps), eps=1e-7)


@functools.cache
def original_optimizer() -> optax.GradientTransformation:
    """Return PyTorch's Adam(lr=3e-4, weight_decay=1e-3).

    The decay is added to the gradient, before the moments.
    """
    return optax.chain(optax.add_decayed_weights(1e-3), optax.adam(3e-4, eps=1e-8))


def epoch_steps(size: int, epochs: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of steps in one epoch.

    Args:
        size: number of examples.
        epochs: number of epochs, at least 1.
        batch_size: 1 to `size`.
        drop_last: whether a last partial batch is left out.

    Returns:
        At least 1.

    Raises:
        UserError: there would be no step at all.
    """
    if epochs < 1:
        raise UserError(f"epochs of the linear probe: got {epochs}, takes at least 1")
    if not 1 <= batch_size <= size:
        raise UserError(
            f"batch size of the linear probe: got {batch_size}, "
            f"takes 1 to the {size} train features"
        )
    return size // batch_size if drop_last else -(-size // batch_size)


def epoch_order(key: jax.Array, size: int, steps: int, batch_size: int) -> jax.Array:
    """Draw a full shuffle of 0 .. size-1 and cut it into batches.

    Args:
        key: a typed random key.
        size: number of examples.
        steps: number of batches.
        batch_size: examples per batch.

    Returns:
        Indices (steps, batch_size) int32. -1 fills up the last batch.
    """
    order = jax.random.permutation(key, size)
    filled = jnp.concatenate([order, jnp.full(batch_size, -1, order.dtype)])
    return filled[: steps * batch_size].reshape(steps, batch_size)


def logits(linear: Linear, x: jax.Array) -> jax.Array:
    """Compute x kernel + bias, (B, F) -> (B, num_classes), in full float32 on every device."""
    return jnp.matmul(x, linear.kernel, precision=jax.lax.Precision.HIGHEST) + linear.bias[None, :]


def mean_loss(linear: Linear, x: jax.Array, y: jax.Array, real: jax.Array, loss: str) -> jax.Array:
    """Compute the mean loss of the real examples.

    Args:
        linear: the layer.
        x: features (B, F).
        y: labels (B,), integers.
        real: (B,) bool. False for an example that only fills up the batch.
        loss: a key of `losses.LOSSES`.

    Returns:
        () float32.
    """
    scores = logits(linear, x)
    losses = LOSSES[loss](scores, jax.nn.one_hot(y, scores.shape[-1]))
    return jnp.sum(losses * real) / jnp.sum(real)


def update(
    optimizer: optax.GradientTransformation,
    linear: Linear,
    opt_state: optax.OptState,
    x: jax.Array,
    y: jax.Array,
    real: jax.Array,
    loss: str = "softmax",
) -> tuple[Linear, optax.OptState, jax.Array]:
    """Take one optimizer step on one batch.

    Args:
        optimizer: the transformation of the gradient.
        linear: the layer.
        opt_state: the state of the optimizer.
        x: features (B, F).
        y: labels (B,), integers.
        real: (B,) bool. False for an example that only fills up the batch.
        loss: a key of `losses.LOSSES`.

    Returns:
        The layer and the optimizer's state after the step, and the loss before it, ().
    """
    value, gradient = jax.value_and_grad(mean_loss)(linear, x, y, real, loss)
    change, opt_state = optimizer.update(gradient, opt_state, linear)
    return jax.tree.map(jnp.add, linear, change), opt_state, value


Carry = tuple[Linear, optax.OptState]


@functools.partial(jax.jit, static_argnames=("optimizer", "steps", "batch_size", "loss"))
def _fit(
    optimizer: optax.GradientTransformation,
    linear: Linear,
    order_keys: jax.Array,
    train: tuple[jax.Array, jax.Array],
    test: tuple[jax.Array, jax.Array],
    steps: int,
    batch_size: int,
    loss: str = "softmax",
) -> tuple[jax.Array, jax.Array]:
    """Run all epochs in one program.

    Return the loss and the number of correct test examples after each epoch, both (epochs,).
    """
    (x, y), (test_x, test_y) = train, test

    def step(carry: Carry, index: jax.Array) -> tuple[Carry, jax.Array]:
        batch = {"x": x[index], "y": y[index], "real": index >= 0}
        linear, opt_state, value = update(optimizer, *carry, **batch, loss=loss)
        return (linear, opt_state), value

    def epoch(carry: Carry, key: jax.Array) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
        carry, losses = jax.lax.scan(step, carry, epoch_order(key, len(x), steps, batch_size))
        correct = jnp.sum(jnp.argmax(logits(carry[0], test_x), axis=1) == test_y)
        return carry, (jnp.mean(losses), correct)

    _, curves = jax.lax.scan(epoch, (linear, optimizer.init(linear)), order_keys)
    return curves


def _result(curves: tuple[jax.Array, jax.Array], test_size: int) -> ProbeResult:
    loss, correct = (np.asarray(curve, np.float64) for curve in curves)
    accuracy = (correct / test_size).tolist()
    return ProbeResult(accuracy[-1], max(accuracy), accuracy, loss.tolist())


def standardise(train_x: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Scale all columns by the train set's to mean 0 and deviation 1.

    A constant column is only centred. Computed in float64, in which a mean far above the deviation
    is not rounded, and returned in the train set's dtype.
    """
    # The import takes a second, so it waits until it is needed.
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train_x.astype(np.float64))
    return [
        np.asarray(scaler.transform(x.astype(np.float64)), train_x.dtype)
        for x in (train_x, *others)
    ]


# --- Closed form ----------------------------------------------------------------------------------

PENALTIES = tuple(10.0**power for power in range(-6, 2))


def ridge_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> RidgeResult:
    """Run ridge regression of standardised features on one-hot targets, in float64.

    The class of the largest output is predicted. The bias is not penalised.

    Args:
        train_x: features (N, F).
        train_y: labels (N,), integers.
        test_x: features (M, F).
        test_y: labels (M,), integers.
        num_classes: number of classes.
        penalties: candidates above 0, in units of the mean eigenvalue of the train covariance. The
            one with the least leave-one-out squared error on the train set is chosen.

    Returns:
        The test accuracy, and the chosen penalty.

    Raises:
        UserError: an argument is out of its range, or a feature is not finite.
    """
    _check(train_x, train_y, test_x, test_y, num_classes)
    if not penalties or min(penalties) <= 0:
        raise UserError(
            f"penalties of the ridge probe: got {list(penalties)}, takes numbers above 0"
        )
    train_x, test_x = standardise(train_x.astype(np.float64), test_x)
    one_hot = np.eye(num_classes)[train_y]
    spectrum = ridge_spectrum(train_x, one_hot)
    penalty = min(penalties, key=lambda p: leave_one_out_error(spectrum, one_hot, p))
    scores = test_x @ ridge_kernel(spectrum, penalty) + one_hot.mean(axis=0)
    return RidgeResult(float(np.mean(scores.argmax(axis=1) == test_y)), float(penalty))


class Spectrum(NamedTuple):
    """The part of ridge regression that all penalties share.

    X (N, F) are centred features, T (N, C) targets.
    """

    eigenvalues: np.ndarray  # (F,) of the covariance X^T X / N = V diag(s) V^T
    vectors: np.ndarray  # V (F, F)
    rotated: np.ndarray  # X V (N, F)
    moment: np.ndarray  # V^T X^T T / N (F, C)


def ridge_spectrum(x: np.ndarray, target: np.ndarray) -> Spectrum:
    """Compute the `Spectrum` of centred features x (N, F) and targets (N, C)."""
    eigenvalues, vectors = np.linalg.eigh(x.T @ x / len(x))
    rotated = x @ vectors
    return Spectrum(eigenvalues.clip(min=0), vectors, rotated, rotated.T @ target / len(x))


# argmin_W |T - X W - 1 b^T|^2 + lambda N |W|^2 with lambda = penalty mean(s): a penalty means the
# same for every scale of the features and every number of examples. X is centred, so b = mean(T):
#   W = V diag(1 / (s + lambda)) V^T X^T T / N.
# The error when example i is left out follows without refitting: residual_i / (1 - h_i), with the
# leverage
#   h_i = 1/N + sum_j (XV)_ij^2 / (N (s_j + lambda)).
# The 1/N is the bias (Hastie et al., ESL, section 7.10.1).


def _shrinkage(spectrum: Spectrum, penalty: float) -> np.ndarray:
    """Return 1 / (s + lambda), (F,). All-constant features get lambda = penalty (mean(s) = 0)."""
    return 1 / (spectrum.eigenvalues + penalty * (spectrum.eigenvalues.mean() or 1.0))


def ridge_kernel(spectrum: Spectrum, penalty: float) -> np.ndarray:
    """Return W (F, C), see above."""
    return spectrum.vectors @ (_shrinkage(spectrum, penalty)[:, None] * spectrum.moment)


def leave_one_out_error(spectrum: Spectrum, target: np.ndarray, penalty: float) -> float:
    """Compute the mean squared error when each example is left out in turn.

    Args:
        spectrum: of the features and the targets.
        target: T (N, C).
        penalty: above 0, in units of the mean eigenvalue of the train covariance.

    Returns:
        The squared error, summed over targets and averaged over examples.
    """
    shrinkage = _shrinkage(spectrum, penalty)
    predicted = spectrum.rotated @ (shrinkage[:, None] * spectrum.moment)
    residual = target - target.mean(axis=0) - predicted
    leverage = (1 + spectrum.rotated**2 @ shrinkage) / len(target)
    return float(np.mean(np.sum((residual / (1 - leverage)[:, None]) ** 2, axis=1)))


# --- Few labels -----------------------------------------------------------------------------------


def few_label_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    num_classes: int,
    labels_per_class: int,
    draws: int,
    seed: int,
    inverse_penalty: float = 1.0,
) -> np.ndarray:
    """Run logistic regression on few train examples of each class.

    Features are standardised by the whole train set, as that takes no labels. A draw depends only
    on the seed, its number and the labels. So encoders can be compared draw by draw.

    Args:
        train_x: features (N, F).
        train_y: labels (N,), integers.
        test_x: features (M, F).
        test_y: labels (M,), integers.
        num_classes: number of classes.
        labels_per_class: number of train examples of each class.
        draws: number of draws of these examples.
        seed: of the draws.
        inverse_penalty: scikit-learn's C.

    Returns:
        Test accuracies (draws,).

    Raises:
        UserError: an argument is out of its range, or a feature is not finite.
    """
    from sklearn.linear_model import LogisticRegression

    _check(train_x, train_y, test_x, test_y, num_classes)
    train_x, test_x = standardise(train_x, test_x)
    accuracy = np.zeros(draws)
    for draw in range(draws):
        chosen = draw_labelled(train_y, num_classes, labels_per_class, seed, draw)
        model = LogisticRegression(C=inverse_penalty, max_iter=1000)
        accuracy[draw] = model.fit(train_x[chosen], train_y[chosen]).score(test_x, test_y)
    return accuracy


def draw_labelled(
    label: np.ndarray, num_classes: int, per_class: int, seed: int, draw: int
) -> np.ndarray:
    """Draw `per_class` different examples of every class that has any.

    Args:
        label: (N,), integers.
        num_classes: number of classes.
        per_class: number of examples of each class.
        seed: of all draws.
        draw: number of the draw.

    Returns:
        Indices (K * per_class,) of the K classes, class after class.

    Raises:
        UserError: a class has too few examples.
    """
    classes, counts = np.unique(label, return_counts=True)
    if not 1 <= per_class <= counts.min():
        raise UserError(
            f"labels per class: got {per_class}, takes 1 to {counts.min()}, "
            f"as class {classes[counts.argmin()]} has no more train examples"
        )
    rng = np.random.default_rng([seed, draw])
    chosen = [rng.choice(np.flatnonzero(label == c), per_class, replace=False) for c in classes]
    return np.concatenate(chosen)
