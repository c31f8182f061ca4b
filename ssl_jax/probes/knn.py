"""Weighted nearest-neighbour classification of frozen features: no training, so nothing to tune."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.probes.features import check_examples

_CHUNK = 256  # queries at a time: with 50 000 in the bank their similarities take 51 MB


def knn_accuracy(
    bank_x: np.ndarray,
    bank_y: np.ndarray,
    query_x: np.ndarray,
    query_y: np.ndarray,
    *,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
) -> float:
    """Return the fraction of queries whose class wins the vote of their k nearest bank features.

    Wu et al. 2018 (arXiv:1805.01978), section 3.4: neighbour i with cosine similarity s_i votes for
    its own class with weight exp(s_i / temperature). A zero feature has cosine 0 with all.

    Args:
        bank_x: features (N, F) float32.
        bank_y: their labels (N,), integers.
        query_x: features (Q, F) float32.
        query_y: their labels (Q,), integers.
        num_classes: number of classes.
        k: number of neighbours, 1 to N.
        temperature: above 0.

    Returns:
        A fraction in [0, 1].

    Raises:
        UserError: an argument is out of its range, or a feature is not finite.
    """
    check_examples("train", bank_x, bank_y, num_classes)
    check_examples("test", query_x, query_y, num_classes)
    if not 1 <= k <= len(bank_x):
        raise UserError(
            f"k of the nearest neighbours: got {k}, takes 1 to the {len(bank_x)} train features"
        )
    if not temperature > 0:
        raise UserError(
            f"temperature of the nearest neighbours: got {temperature}, takes a number above 0"
        )
    predicted = _predict(bank_x, bank_y, query_x, num_classes, k, temperature)
    return float(np.mean(np.asarray(predicted) == query_y))


@functools.partial(jax.jit, static_argnames=("num_classes", "k"))
def _predict(
    bank_x: jax.Array,
    bank_y: jax.Array,
    query_x: jax.Array,
    num_classes: int,
    k: int,
    temperature: float,
) -> jax.Array:
    """Return the winning class of every query, (Q,) int32."""
    bank_x, query_x = jax.vmap(_unit)(bank_x), jax.vmap(_unit)(query_x)

    def predict_one(query: jax.Array) -> jax.Array:
        similarity = jnp.matmul(bank_x, query, precision=jax.lax.Precision.HIGHEST)
        nearest, index = jax.lax.top_k(similarity, k)
        return vote(nearest, bank_y[index], num_classes, temperature)

    return jax.lax.map(predict_one, query_x, batch_size=_CHUNK)


def _unit(x: jax.Array) -> jax.Array:
    """Return x / max(||x||, smallest normal number): a zero vector stays zero."""
    return x / jnp.maximum(jnp.linalg.norm(x), jnp.finfo(x.dtype).tiny)


def vote(
    similarity: jax.Array, label: jax.Array, num_classes: int, temperature: float
) -> jax.Array:
    """Return argmax_c sum_{i: label_i = c} exp(similarity_i / temperature) for one query.

    The largest similarity is subtracted first. This changes no winner, and no weight overflows.

    Args:
        similarity: of the k neighbours (k,), in descending order.
        label: of the k neighbours (k,), integers.
        num_classes: number of classes.
        temperature: above 0.

    Returns:
        The winning class, () int32.
    """
    weight = jnp.exp((similarity - similarity[0]) / temperature)
    return jnp.argmax(jnp.zeros(num_classes).at[label].add(weight))
