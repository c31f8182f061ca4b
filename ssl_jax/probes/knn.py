"""Weighted nearest-neighbour classification of frozen features: no training, so nothing to tune."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.probes.features import check_examples
from ssl_jax.runtime import stops

_CHUNK = 256  # queries at a time: with 50 000 in the bank their similarities take 102 MB


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

    Norms and similarities are float64, and nothing is centred, which would be another measure.
    Where one direction dominates all features, as in dimensional collapse, the cosines differ in
    their last digits alone, and float32 has lost them.

    Args:
        bank_x: features (N, F), float32 or float64.
        bank_y: their labels (N,), integers.
        query_x: features (Q, F), float32 or float64.
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
    return float(np.mean(predicted == query_y))


def _predict(
    bank_x: np.ndarray,
    bank_y: np.ndarray,
    query_x: np.ndarray,
    num_classes: int,
    k: int,
    temperature: float,
) -> np.ndarray:
    """Return the winning class of every query, (Q,) int32."""
    bank, found = unit(bank_x), []
    for start in range(0, len(query_x), _CHUNK):
        stops.check()
        # On the host: XLA has no float64 unless all of a program has.
        similarity = unit(query_x[start : start + _CHUNK]) @ bank.T
        # Less the largest, float32 keeps the digits in which the nearest neighbours differ.
        below = np.float32(similarity - similarity.max(axis=1, keepdims=True))
        largest, index = _largest(below, k)
        found.append(_votes(largest, bank_y[np.asarray(index)], num_classes, temperature))
    return np.concatenate(found)


# Two programs: in one with the votes, XLA sorts the whole row on a CPU, 25 times as long.
_largest = jax.jit(jax.lax.top_k, static_argnums=1)


@functools.partial(jax.jit, static_argnums=2)
def _votes(
    similarity: jax.Array, label: jax.Array, num_classes: int, temperature: float
) -> jax.Array:
    """Return the winning class of each row of k neighbours (Q, k), (Q,) int32."""
    return jax.vmap(lambda s, y: vote(s, y, num_classes, temperature))(similarity, label)


def nearest(bank_x: np.ndarray, query_x: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the k bank features with the largest cosine to each query.

    Args:
        bank_x: features (N, F).
        query_x: features (Q, F), few of them.
        k: number of neighbours, at most N.

    Returns:
        (Q, k), the nearest first; among equals the first of the bank.
    """
    similarity = unit(query_x) @ unit(bank_x).T
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def nearest_in_pieces(
    pieces: Iterable[np.ndarray], query_x: np.ndarray, own: np.ndarray, k: int
) -> np.ndarray:
    """Return what `nearest` does where the bank comes in pieces, and the queries are among it.

    Args:
        pieces: features (n, F) of the bank, one piece in memory at a time.
        query_x: features (Q, F), few of them.
        own: place of each query in the bank, (Q,): it is none of its own neighbours.
        k: number of neighbours.

    Returns:
        Places in the bank (Q, K), the nearest first, K the smaller of k and the others.
    """
    query, start = unit(query_x), 0
    best, place = np.zeros((len(query), 0)), np.zeros((len(query), 0), np.int64)
    for piece in pieces:
        similarity = query @ unit(piece).T
        inside = np.flatnonzero((own >= start) & (own < start + len(piece)))
        similarity[inside, own[inside] - start] = -np.inf
        numbers = np.broadcast_to(np.arange(start, start + len(piece)), similarity.shape)
        best = np.concatenate([best, similarity], axis=1)
        place = np.concatenate([place, numbers], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, : k + 1]
        best, place = (np.take_along_axis(a, order, axis=1) for a in (best, place))
        start += len(piece)
    return place[:, : min(k, start - 1)]


def unit(x: np.ndarray) -> np.ndarray:
    """Return the rows of x (N, F) over their norms, float64. A row of zeros stays."""
    x = x.astype(np.float64)  # a copy
    # By the largest first: the square of none is then too large or too small a number.
    for size in (lambda x: np.abs(x).max(axis=1), lambda x: np.linalg.norm(x, axis=1)):
        lengths = size(x)
        x /= np.where(lengths > 0, lengths, 1)[:, None]
    return x


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
