"""Losses between what a network says and what it should say.

Of two views: `OBJECTIVES`, by name, and `REGULARISERS`, which are added to any of them. Of an image
and its class: `LOSSES`, by name. There `logits` (..., K) are the scores of K classes and `target`
(..., K) is their distribution, one-hot or mixed. The loss (...) is one number an example.
"""

# JAX and its relatives leave the types of arrays' members, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from ssl_jax.types import Mean

NORM_FLOOR = 1e-12  # of torch.nn.functional.normalize


def unit(x: jax.Array) -> jax.Array:
    """Divide x (..., D) by its Euclidean norm over the last axis.

    The norm is floored at 1e-12, so the gradient at zero is finite.
    """
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, NORM_FLOOR**2))


def negative_cosine(p: jax.Array, z: jax.Array) -> jax.Array:
    """Return -<p, z> / (||p|| ||z||), the loss of one direction: p, z (B, D) -> (B,).

    No gradient flows into z. Höppe et al. 2022 (ReScience C), eq. 1. The loss of a pair is the sum
    of its two directions.
    """
    chex.assert_rank([p, z], 2)
    chex.assert_equal_shape([p, z])
    return -jnp.sum(unit(p) * unit(jax.lax.stop_gradient(z)), axis=-1)


def half_squared(p: jax.Array, z: jax.Array) -> jax.Array:
    """Return ||p - z||^2 / 2, the loss of one direction in the linear theory: p, z (B, D) -> (B,).

    No gradient flows into z. Tian et al. 2021 (arXiv 2102.06810), eq. 1.
    """
    chex.assert_rank([p, z], 2)
    return squared(p, jax.lax.stop_gradient(z))


# --- Of two views ---------------------------------------------------------------------------------

Pair = tuple[jax.Array, jax.Array]  # one array (B, D) of each view
Terms = dict[str, jax.Array]  # scalars () by name, the parts that a loss is made of
Distance = Callable[[jax.Array, jax.Array], jax.Array]  # distance(p, t) of (B, D) is (B,)
# loss(p, z, t, memory, mean) -> (loss, terms), as `Objective` says
PairLoss = Callable[[Pair, Pair, Pair, Mapping[str, jax.Array], Mean], tuple[jax.Array, Terms]]
# loss(logits, target) of (..., K) is (...)
ClassLoss = Callable[[jax.Array, jax.Array], jax.Array]


class Objective(NamedTuple):
    """What a pretraining step minimises: objective(p, z, t, memory, mean) -> (loss, terms).

    On several devices each has its own part of the batch. The step takes the mean of the devices'
    losses and of their gradients. An objective that needs a number of the whole batch takes it by
    `mean`.

    Args:
        p: the predictions (B, D) of both views.
        z: what the predictor was given, the online network's projections (B, D) of both views.
        t: the target network's projections (B, D) of both views, constants to the gradient.
        memory: the predictor's; "correlation" (D, D) is the running average F of the batches before
            this one.
        mean: the mean of a tree of arrays over all devices, which may be differentiated.

    Returns:
        (loss, terms). loss () is to be made small. terms are scalars by name, the parts that the
        loss is made of; where there are several, they are recorded.
    """

    # loss(p, z, t, memory, mean) -> (loss, terms)
    loss: PairLoss
    # whether the loss changes where all p, or all z and t, are multiplied by a number
    sees_scale: bool

    def __call__(
        self, p: Pair, z: Pair, t: Pair, memory: Mapping[str, jax.Array], mean: Mean
    ) -> tuple[jax.Array, Terms]:
        return self.loss(p, z, t, memory, mean)


def both_directions(distance: Distance) -> PairLoss:
    """Return the loss of an objective that predicts each view's target from the other view.

    It is the mean over the batch of distance(p_1, t_2) + distance(p_2, t_1), where distance(p, t)
    of (B, D) is (B,).
    """

    def loss(
        p: Pair, z: Pair, t: Pair, memory: Mapping[str, jax.Array], mean: Mean
    ) -> tuple[jax.Array, Terms]:
        value = jnp.mean(distance(p[0], t[1]) + distance(p[1], t[0]))
        return value, {"prediction": value}

    return loss


def isotropic(objective: PairLoss) -> PairLoss:
    """Return IsoLoss of an objective: the same value, whose gradient at p reaches z past W_p.

    With p = W_p z the objective's gradient at z is W_pᵀ times that at p, so that an eigenvalue of
    W_p multiplies the speed of its mode. Here the gradient at z is the one at p, and W_p has none:
    all modes move at one rate. Halvagal, Laborieux & Zenke 2023 (arXiv 2212.04858). Their code
    (fmi-basel/implicit-var-reg, solo/losses/isoloss.py) has

        |z - sg(t + z - p)|²    -2 z·sg(t/(|p||t|)) + sg(p·t/(|p|³|t|)) |W_p^(1/2) z|²

    whose gradients are twice those of `half_squared` and `negative_cosine` here, the second's where
    W_p is symmetric and positive. The second is no distance and need not fall, so that its value is
    not taken over. IsoLoss takes a predictor that is written down, since no gradient reaches a
    learned one.

    Args:
        objective: of two views, differentiable in p.

    Returns:
        The objective.
    """

    def loss(
        p: Pair, z: Pair, t: Pair, memory: Mapping[str, jax.Array], mean: Mean
    ) -> tuple[jax.Array, Terms]:
        constant = jax.lax.stop_gradient
        # z less itself is 0 and has z's gradient
        first, second = (constant(a) + (b - constant(b)) for a, b in zip(p, z, strict=True))
        return objective((first, second), z, t, memory, mean)

    return loss


OBJECTIVES: dict[str, Objective] = {
    "cosine": Objective(both_directions(negative_cosine), sees_scale=False),
    "euclidean": Objective(both_directions(half_squared), sees_scale=True),
    "iso_cosine": Objective(isotropic(both_directions(negative_cosine)), sees_scale=False),
    "iso_euclidean": Objective(isotropic(both_directions(half_squared)), sees_scale=True),
}


def variance_hinge(
    p: Pair,
    z: Pair,
    t: Pair,
    memory: Mapping[str, jax.Array],
    mean: Mean,
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> jax.Array:
    """Return mean_d max(0, gamma - sqrt(Var(z_d) + eps)), summed over both views.

    It keeps every dimension of z spread out. Bardes et al. 2022 (VICReg, arXiv 2105.04906), eq. 1
    and 2. The variance is of the whole batch over all devices, divided by its size N. The authors'
    code divides by N - 1, which is 0.4 % of the deviation at N = 128.

    Args:
        p: predictions (B, D) of both views, not looked at.
        z: projections (B, D) of both views, differentiated.
        t: the target's projections (B, D) of both views, not looked at.
        memory: the predictor's, not looked at.
        mean: the mean of a tree of arrays over all devices.
        gamma: the standard deviation from which on nothing is asked for.
        eps: keeps the gradient finite at no variance.

    Returns:
        () of the whole batch, the same on every device.
    """

    def of_one_view(z: jax.Array) -> jax.Array:
        centred = z - mean(jnp.mean(z, axis=0, keepdims=True))
        variance = mean(jnp.mean(jnp.square(centred), axis=0))
        return jnp.mean(jnp.maximum(0.0, gamma - jnp.sqrt(variance + eps)))

    return of_one_view(z[0]) + of_one_view(z[1])


# regulariser(p, z, t, memory, mean) -> (); its weight is the field of `config.regularisers` of the
# same name.
REGULARISERS: dict[str, Callable[..., jax.Array]] = {"variance": variance_hinge}


def regularised(objective: PairLoss, weights: Mapping[str, float]) -> PairLoss:
    """Add weight * regulariser to the objective for each of `REGULARISERS` whose weight is not 0.

    Each is a term of its own. Where all weights are 0, return the objective itself.
    """
    chosen = {name: weight for name, weight in weights.items() if weight}
    if not chosen:
        return objective

    def loss(
        p: Pair, z: Pair, t: Pair, memory: Mapping[str, jax.Array], mean: Mean
    ) -> tuple[jax.Array, Terms]:
        total, terms = objective(p, z, t, memory, mean)
        added = {name: REGULARISERS[name](p, z, t, memory, mean) for name in chosen}
        return total + sum(weight * added[name] for name, weight in chosen.items()), terms | added

    return loss


# --- Of an image and its class --------------------------------------------------------------------


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Return -sum_k t_k log softmax(s)_k, in nats. Its gradient is softmax(s) - t."""
    chex.assert_equal_shape([logits, target])
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def squared(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Return ||s - t||^2 / 2, summed over the classes.

    Its gradient is s - t, the like of the cross-entropy's. Over a linear layer its minimum is least
    squares, with weight decay ridge regression.
    """
    chex.assert_equal_shape([logits, target])
    return 0.5 * jnp.sum(jnp.square(logits - target), axis=-1)


def hinge(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Return sum_k t_k max(0, 1 + max_{j != k} s_j - s_k).

    The true class should win by a margin of 1. For one-hot targets that is the loss of Crammer &
    Singer 2001 (JMLR 2, eq. 3), which looks at the best rival alone, as the decision does. For
    mixed targets it is the mean of that loss over the classes, as cross-entropy is.
    """
    chex.assert_equal_shape([logits, target])
    best, second = jnp.split(jax.lax.top_k(logits, 2)[0], 2, axis=-1)
    rival = jnp.where(logits == best, second, best)
    return jnp.sum(target * jnp.maximum(0.0, 1 + rival - logits), axis=-1)


LOSSES: dict[str, ClassLoss] = {"softmax": cross_entropy, "squared": squared, "hinge": hinge}


def jensen_shannon(logits: Sequence[jax.Array]) -> jax.Array:
    """Return sum_i KL(p_i || m) / n in nats, with p_i = softmax(logits_i) and their mean m.

    It lies between 0 and log n. It measures the consistency of an image and its augmented versions,
    n arrays (..., K) -> (...). AugMix adds it 12 times to the cross-entropy of the clean image
    (Hendrycks et al. 2020, arXiv 1912.02781, eq. 3 and 4). All n are differentiated.
    """
    chex.assert_equal_shape(logits)
    log_p = jax.nn.log_softmax(jnp.stack(logits))
    log_mean = jax.nn.logsumexp(log_p, axis=0, keepdims=True) - jnp.log(len(logits))
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_mean), axis=-1), axis=0)
