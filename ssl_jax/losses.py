"""Losses between what a network says and what it should say.

Of two views: `DISTANCES`, by name. Of an image and its class: `LOSSES`, by name. There `logits` (..., K) are the
scores of K classes and `target` (..., K) is their distribution, one-hot or mixed; the loss (...) is one number an
example.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

NORM_FLOOR = 1e-12  # of torch.nn.functional.normalize


def unit(x: jax.Array) -> jax.Array:
    """x (..., D) divided by its Euclidean norm, the norm floored at 1e-12; finite gradient at zero."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, NORM_FLOOR**2))


def negative_cosine(p: jax.Array, z: jax.Array) -> jax.Array:
    """-<p, z> / (||p|| ||z||), the loss of one direction; p, z (B, D) -> (B,). No gradient flows into z.

    Höppe et al. 2022 (ReScience C), eq. 1. The loss of a pair is the sum of its two directions.
    """
    chex.assert_rank([p, z], 2)
    chex.assert_equal_shape([p, z])
    return -jnp.sum(unit(p) * unit(jax.lax.stop_gradient(z)), axis=-1)


def half_squared(p: jax.Array, z: jax.Array) -> jax.Array:
    """||p - z||^2 / 2, the loss of one direction in the linear theory; p, z (B, D) -> (B,). No gradient flows into z.

    Tian et al. 2021 (arXiv 2102.06810), eq. 1.
    """
    chex.assert_rank([p, z], 2)
    return squared(p, jax.lax.stop_gradient(z))


DISTANCES = {"cosine": negative_cosine, "euclidean": half_squared}


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """-sum_k t_k log softmax(s)_k, in nats; its gradient is softmax(s) - t."""
    chex.assert_equal_shape([logits, target])
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def squared(logits: jax.Array, target: jax.Array) -> jax.Array:
    """||s - t||^2 / 2, summed over the classes; its gradient is s - t, the like of the cross-entropy's.

    Over a linear layer its minimum is least squares, with weight decay ridge regression.
    """
    chex.assert_equal_shape([logits, target])
    return 0.5 * jnp.sum(jnp.square(logits - target), axis=-1)


def hinge(logits: jax.Array, target: jax.Array) -> jax.Array:
    """sum_k t_k max(0, 1 + max_{j != k} s_j - s_k): the true class should win by a margin of 1.

    For one-hot targets that is the loss of Crammer & Singer 2001 (JMLR 2, eq. 3), which looks at the best rival
    alone, as the decision does; for mixed targets its mean over the classes, as cross-entropy is.
    """
    chex.assert_equal_shape([logits, target])
    best, second = jnp.split(jax.lax.top_k(logits, 2)[0], 2, axis=-1)
    rival = jnp.where(logits == best, second, best)
    return jnp.sum(target * jnp.maximum(0.0, 1 + rival - logits), axis=-1)


LOSSES = {"softmax": cross_entropy, "squared": squared, "hinge": hinge}


def jensen_shannon(logits: Sequence[jax.Array]) -> jax.Array:
    """sum_i KL(p_i || m) / n with p_i = softmax(logits_i) and their mean m, in nats: between 0 and log n.

    The consistency of an image and its augmented versions, n arrays (..., K) -> (...). AugMix adds it 12 times to the
    cross-entropy of the clean image (Hendrycks et al. 2020, arXiv 1912.02781, eq. 3 and 4). All n are differentiated.
    """
    chex.assert_equal_shape(logits)
    log_p = jax.nn.log_softmax(jnp.stack(logits))
    log_mean = jax.nn.logsumexp(log_p, axis=0, keepdims=True) - jnp.log(len(logits))
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_mean), axis=-1), axis=0)
