"""Linear classification of frozen features: two published protocols, closed-form ridge, and few labels.

Features are (N, F) float32, labels (N,) integers in [0, num_classes); accuracies are fractions in [0, 1].
Nothing is ever chosen on the test set, except `ProbeResult.best_accuracy`, whose name says so.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax.errors import UserError, nearest
from ssl_jax.losses import LOSSES
from ssl_jax.probes.features import check_examples


class Linear(NamedTuple):
    kernel: jax.Array  # (F, num_classes)
    bias: jax.Array  # (num_classes,)


class ProbeResult(NamedTuple):
    last_accuracy: float  # on the test set after the last epoch: the number to report
    best_accuracy: float  # of the best epoch on the test set: optimistic, as it is chosen on that set
    accuracy: list[float]  # on the test set after each epoch
    loss: list[float]  # on the train set, by default cross-entropy in nats: mean over the steps of each epoch


class RidgeResult(NamedTuple):
    accuracy: float  # on the test set
    penalty: float  # the one used, in units of the mean eigenvalue of the train covariance


# --- Gradient descent: the two published protocols --------------------------------------------------------


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
    """The replication paper's protocol: raw features, Adam from 5e-2 to 5e-4, the last epoch counts.

    Kernel and bias, started as Keras does, under the loss of that name in `losses.LOSSES`: the paper's is softmax
    cross-entropy. Each epoch is a new shuffle without its last partial batch.
    """
    _check(train_x, train_y, test_x, test_y, num_classes)
    if loss not in LOSSES:
        raise UserError(f"loss of the linear probe: got {loss!r}, {nearest(loss, LOSSES)}")
    steps = epoch_steps(len(train_x), epochs, batch_size, drop_last=True)
    linear, order_keys = _start(glorot_linear, train_x.shape[1], num_classes, epochs, seed)
    optimizer, train, test = seed_optimizer(epochs * steps), (train_x, train_y), (test_x, test_y)
    return _result(_fit(optimizer, linear, order_keys, train, test, steps, batch_size, loss), len(test_y))


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
    """The protocol of the DirectPred authors' code (arXiv:2102.06810): standardised features, Adam 3e-4.

    Mean and deviation are the train set's. Kernel and bias start as PyTorch's do, and both are decayed. The
    last partial batch is used. The authors published `best_accuracy`.
    """
    _check(train_x, train_y, test_x, test_y, num_classes)
    steps = epoch_steps(len(train_x), epochs, batch_size, drop_last=False)
    linear, order_keys = _start(uniform_linear, train_x.shape[1], num_classes, epochs, seed)
    train_x, test_x = standardise(train_x, test_x)
    train, test = (train_x, train_y), (test_x, test_y)
    return _result(_fit(original_optimizer(), linear, order_keys, train, test, steps, batch_size), len(test_y))


def _check(train_x, train_y, test_x, test_y, num_classes: int) -> None:
    check_examples("train", train_x, train_y, num_classes)
    check_examples("test", test_x, test_y, num_classes)


def _start(init, features: int, num_classes: int, epochs: int, seed: int) -> tuple[Linear, jax.Array]:
    """The layer that the seed gives, and one key for the shuffle of each epoch."""
    init_key, order_key = jax.random.split(jax.random.key(seed))
    return init(init_key, features, num_classes), jax.random.split(order_key, epochs)


def glorot_linear(key: jax.Array, features: int, num_classes: int) -> Linear:
    """Keras: kernel U(+-sqrt(6 / (features + num_classes))), bias 0."""
    kernel = jax.nn.initializers.glorot_uniform()(key, (features, num_classes))
    return Linear(kernel, jnp.zeros(num_classes))


def uniform_linear(key: jax.Array, features: int, num_classes: int) -> Linear:
    """PyTorch: kernel and bias U(+-1 / sqrt(features))."""
    draw = jax.random.uniform(key, (features + 1, num_classes), minval=-1, maxval=1) / features**0.5
    return Linear(draw[:-1], draw[-1])


@functools.cache  # one optimizer object, hence one compiled program, for equal arguments
def seed_optimizer(total_steps: int) -> optax.GradientTransformation:
    """Adam with the rate 5e-4 + (5e-2 - 5e-4) (1 - t/T)^2 at step t = 0, 1, ... of T = total_steps.

    Epsilon is Keras's 1e-7. Keras adds it before it corrects the bias of the second moment, optax after: the
    same up to a factor sqrt(1 - 0.999^t) on an epsilon far below any gradient that matters.
    """
    return optax.adam(optax.polynomial_schedule(5e-2, 5e-4, 2, total_steps), eps=1e-7)


@functools.cache
def original_optimizer() -> optax.GradientTransformation:
    """PyTorch's Adam(lr=3e-4, weight_decay=1e-3): the decay is added to the gradient, before the moments."""
    return optax.chain(optax.add_decayed_weights(1e-3), optax.adam(3e-4, eps=1e-8))


def epoch_steps(size: int, epochs: int, batch_size: int, drop_last: bool) -> int:
    """The steps of one epoch; UserError where there would be none at all."""
    if epochs < 1:
        raise UserError(f"epochs of the linear probe: got {epochs}, takes at least 1")
    if not 1 <= batch_size <= size:
        raise UserError(f"batch size of the linear probe: got {batch_size}, takes 1 to the {size} train features")
    return size // batch_size if drop_last else -(-size // batch_size)


def epoch_order(key: jax.Array, size: int, steps: int, batch_size: int) -> jax.Array:
    """A full shuffle of 0 .. size-1 cut into (steps, batch_size) int32; -1 fills up the last batch."""
    order = jax.random.permutation(key, size)
    filled = jnp.concatenate([order, jnp.full(batch_size, -1, order.dtype)])
    return filled[: steps * batch_size].reshape(steps, batch_size)


def logits(linear: Linear, x: jax.Array) -> jax.Array:
    """x kernel + bias, (B, F) -> (B, num_classes), in full float32 on every device."""
    return jnp.matmul(x, linear.kernel, precision=jax.lax.Precision.HIGHEST) + linear.bias[None, :]


def mean_loss(linear: Linear, x: jax.Array, y: jax.Array, real: jax.Array, loss: str) -> jax.Array:
    """Mean loss of the examples that are real; x (B, F), y (B,), real (B,); loss: a name in LOSSES."""
    scores = logits(linear, x)
    losses = LOSSES[loss](scores, jax.nn.one_hot(y, scores.shape[-1]))
    return jnp.sum(losses * real) / jnp.sum(real)


def update(optimizer, linear: Linear, memory: optax.OptState, x, y, real, loss: str = "softmax"):
    """One optimizer step on one batch: (linear, memory, loss before the step)."""
    value, gradient = jax.value_and_grad(mean_loss)(linear, x, y, real, loss)
    change, memory = optimizer.update(gradient, memory, linear)
    return jax.tree.map(jnp.add, linear, change), memory, value


@functools.partial(jax.jit, static_argnames=("optimizer", "steps", "batch_size", "loss"))
def _fit(optimizer, linear: Linear, order_keys, train, test, steps: int, batch_size: int, loss: str = "softmax"):
    """All epochs in one program: (loss, number of test hits) after each, both (epochs,)."""
    (x, y), (test_x, test_y) = train, test

    def step(carry, index):
        now, memory, value = update(optimizer, *carry, x=x[index], y=y[index], real=index >= 0, loss=loss)
        return (now, memory), value

    def epoch(carry, key):
        carry, losses = jax.lax.scan(step, carry, epoch_order(key, len(x), steps, batch_size))
        hits = jnp.sum(jnp.argmax(logits(carry[0], test_x), axis=1) == test_y)
        return carry, (jnp.mean(losses), hits)

    _, curves = jax.lax.scan(epoch, (linear, optimizer.init(linear)), order_keys)
    return curves


def _result(curves: tuple[jax.Array, jax.Array], test_size: int) -> ProbeResult:
    loss, hits = (np.asarray(curve, np.float64) for curve in curves)
    accuracy = (hits / test_size).tolist()
    return ProbeResult(accuracy[-1], max(accuracy), accuracy, loss.tolist())


def standardise(train_x: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Zero mean and unit deviation by the train set's columns; a constant column is only centred."""
    from sklearn.preprocessing import StandardScaler  # its import takes a second, and a run ends with it

    scaler = StandardScaler().fit(train_x)
    return [np.asarray(scaler.transform(x)) for x in (train_x, *others)]


# --- Closed form --------------------------------------------------------------------------------------------

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
    """Ridge regression of standardised features on one-hot targets, in float64; the largest output wins.

    The bias is not penalised. Of `penalties`, the one with the least leave-one-out squared error on the train
    set is taken.
    """
    _check(train_x, train_y, test_x, test_y, num_classes)
    if not penalties or min(penalties) <= 0:
        raise UserError(f"penalties of the ridge probe: got {list(penalties)}, takes numbers above 0")
    train_x, test_x = standardise(train_x.astype(np.float64), test_x)
    one_hot = np.eye(num_classes)[train_y]
    spectrum = ridge_spectrum(train_x, one_hot)
    penalty = min(penalties, key=lambda p: leave_one_out_error(spectrum, one_hot, p))
    scores = test_x @ ridge_kernel(spectrum, penalty) + one_hot.mean(axis=0)
    return RidgeResult(float(np.mean(scores.argmax(axis=1) == test_y)), float(penalty))


class Spectrum(NamedTuple):
    """What ridge regression needs of centred features X (N, F) and targets T (N, C), whatever the penalty."""

    eigenvalues: np.ndarray  # (F,) of the covariance X^T X / N = V diag(s) V^T
    vectors: np.ndarray  # V (F, F)
    rotated: np.ndarray  # X V (N, F)
    moment: np.ndarray  # V^T X^T T / N (F, C)


def ridge_spectrum(x: np.ndarray, target: np.ndarray) -> Spectrum:
    eigenvalues, vectors = np.linalg.eigh(x.T @ x / len(x))
    rotated = x @ vectors
    return Spectrum(eigenvalues.clip(min=0), vectors, rotated, rotated.T @ target / len(x))


# argmin_W |T - X W - 1 b^T|^2 + lambda N |W|^2 with lambda = penalty mean(s), so that a penalty means the
# same whatever the scale of the features and the number of examples. X is centred, hence b = mean(T) and
#   W = V diag(1 / (s + lambda)) V^T X^T T / N.
# Leaving out example i, without refitting: residual_i / (1 - h_i), with the leverage
#   h_i = 1/N + sum_j (XV)_ij^2 / (N (s_j + lambda));  the 1/N is the bias (Hastie et al., ESL, section 7.10.1).


def _shrinkage(spectrum: Spectrum, penalty: float) -> np.ndarray:
    """1 / (s + lambda), (F,). All-constant features have mean(s) = 0 and get lambda = penalty."""
    return 1 / (spectrum.eigenvalues + penalty * (spectrum.eigenvalues.mean() or 1.0))


def ridge_kernel(spectrum: Spectrum, penalty: float) -> np.ndarray:
    """W (F, C), see above."""
    return spectrum.vectors @ (_shrinkage(spectrum, penalty)[:, None] * spectrum.moment)


def leave_one_out_error(spectrum: Spectrum, target: np.ndarray, penalty: float) -> float:
    """Mean over examples of the squared error, summed over targets, when each example is left out in turn."""
    shrinkage = _shrinkage(spectrum, penalty)
    residual = target - target.mean(axis=0) - spectrum.rotated @ (shrinkage[:, None] * spectrum.moment)
    leverage = (1 + spectrum.rotated**2 @ shrinkage) / len(target)
    return float(np.mean(np.sum((residual / (1 - leverage)[:, None]) ** 2, axis=1)))


# --- Few labels ---------------------------------------------------------------------------------------------


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
    """Test accuracies (draws,) of logistic regression on `labels_per_class` train examples of each class.

    Features are standardised by the whole train set, as that takes no labels. A draw depends on the seed, its
    number and the labels alone, so encoders can be compared draw by draw. inverse_penalty: scikit-learn's C.
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


def draw_labelled(label: np.ndarray, num_classes: int, per_class: int, seed: int, draw: int) -> np.ndarray:
    """`per_class` different positions of every class in turn, (num_classes * per_class,)."""
    counts = np.bincount(label, minlength=num_classes)
    if not 1 <= per_class <= counts.min():
        raise UserError(
            f"labels per class: got {per_class}, takes 1 to {counts.min()}, "
            f"as class {counts.argmin()} has no more train examples"
        )
    rng = np.random.default_rng([seed, draw])
    classes = range(num_classes)
    return np.concatenate([rng.choice(np.flatnonzero(label == c), per_class, replace=False) for c in classes])
