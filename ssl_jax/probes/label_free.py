"""Measures of a representation that need no label: how many directions it uses, and how evenly.

They take features as (N, F) arrays of any float type, compute in float64 on the host, and return
one float. Where a measure is not defined, as the slope of a spectrum with a single eigenvalue, the
float is NaN. Values of up to 1e30 overflow nowhere.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ssl_jax.data.dataset import Dataset
from ssl_jax.data.splits import held_out_rows
from ssl_jax.errors import UserError
from ssl_jax.models import Network
from ssl_jax.probes.knn import unit
from ssl_jax.runtime import stops
from ssl_jax.types import Params, PyTree

EPSILON = 1e-7  # of RankMe's equation (1), for float32; LiDAR's entropy has the same form
DELTA = 1e-4  # LiDAR's
FIRST, LAST = 6, 100  # ranks that the power law is fitted to
VIEWS = 2  # of each image, in evaluations
MOST = 1000  # images of an evaluation, as many as LiDAR's paper takes
BATCH = 500  # images that pass through the network at a time
# For the views of evaluations, apart from every step's: no run has so many steps.
VIEWS_KEY = 2**32 - 1

# views(keys (B,), image (B, H, W, C) uint8) -> two arrays (B, S, S, C)
Views = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
Pair = tuple[jax.Array, ...]  # features (B, q, F) and projections (B, q, D)
# measure(params, stats, image (N, H, W, C) uint8) -> the columns of `COLUMNS`
Measure = Callable[[Params, PyTree, np.ndarray], dict[str, float]]


def rankme(x: np.ndarray) -> float:
    """Compute the exponential of the entropy of the singular values, from 1 to min(N, F).

    Garrido et al. 2023 (arXiv 2210.02885), equation (1): exp(-sum_k p_k log p_k) with
    p_k = sigma_k / sum_j sigma_j + epsilon, epsilon = 1e-7. The features are not centred. Larger is
    better, between runs of one method: the paper warns against comparing methods by it.

    Raises:
        UserError: a feature is not finite.
    """
    return _entropy_rank(_singular_values(_scaled(x)[0]))


def alpha_req(x: np.ndarray, first: int = FIRST, last: int = LAST) -> float:
    """Fit the decay alpha of the covariance's eigenvalues, lambda_j = c j^-alpha.

    Agrawal et al. 2022, "alpha-ReQ" (NeurIPS 35). The line is fitted to log lambda_j over log j by
    least squares with the weights 1 / j, for ranks j = 6 to 100, or to the last rank that there is.
    Weights and ranks are those of the authors' library (reptrix), which took the weights from
    Stringer et al. 2019. Eigenvalues that the rounding of float32 could have made are no ranks.
    Near 1 is best: less is close to white noise, more has few directions.

    Args:
        x: features (N, F).
        first: first rank of the fit, from 1.
        last: last rank of the fit.

    Returns:
        The slope, of either sign. NaN where fewer than two ranks are left.

    Raises:
        UserError: a feature is not finite.
    """
    x, _ = _scaled(x)
    noise = np.finfo(np.float32).eps ** 2 * np.mean(np.sum(x**2, axis=1))
    s = _singular_values(x - x.mean(axis=0, keepdims=True))
    eigenvalues = s**2 / max(len(x) - 1, 1)
    known = eigenvalues[eigenvalues > noise][first - 1 : last]
    if len(known) < 2:
        return float("nan")
    rank = np.arange(first, first + len(known), dtype=np.float64)
    # polyfit squares its weights
    return float(-np.polyfit(np.log(rank), np.log(known), 1, w=rank**-0.5)[0])


def lidar(views: np.ndarray, delta: float = DELTA) -> float:
    """Compute the effective rank of the matrix of linear discriminant analysis, from 1 to F.

    Thilak et al. 2024 (arXiv 2312.04000), section 4. Each image is a class, and its views are the
    samples: Sigma_b = mean_i (m_i - m)(m_i - m)^T over the images' means m_i, Sigma_w =
    mean_i,k (x_ik - m_i)(x_ik - m_i)^T + delta I, and the eigenvalues of
    Sigma_w^-1/2 Sigma_b Sigma_w^-1/2 go into the entropy of `rankme`. Directions that differ
    between images and not between views of one count. delta = 1e-4 is absolute, so the measure is
    not independent of the features' scale. Larger is better.

    The mean of q views keeps 1 / q of the spread within a class, and plain means give Sigma_w
    (q - 1) / q of it. So a direction without any information has the eigenvalue 1 / (q - 1): 1 for
    two views, and 0.02 for the paper's 50. With two views such directions count in full as soon as
    no informative one is far above 1; runs can be compared at one q only.

    Args:
        views: features (N, q, F) of q >= 2 views of each image.
        delta: added to each eigenvalue of Sigma_w.

    Returns:
        The effective rank.

    Raises:
        UserError: a feature is not finite, or there are fewer than two views.
    """
    chex.assert_rank(views, 3)
    count, q, width = views.shape
    if q < 2:
        raise UserError(f"lidar: got {q} view of each image, takes at least 2")
    flat, scale = _scaled(views.reshape(count * q, width))
    x = flat.reshape(count, q, width)
    means = x.mean(axis=1)
    between = (means - means.mean(axis=0, keepdims=True)) / np.sqrt(count)
    within = (x - means[:, None]).reshape(count * q, width) / np.sqrt(count * q)
    # First the directions in which there is more than rounding: what rounding leaves in one of the
    # others, divided by a tiny delta, would outweigh them.
    sigma_b, sigma_w = between.T @ between, within.T @ within
    support = _support(sigma_b + sigma_w)
    values, basis = np.linalg.eigh(support.T @ sigma_w @ support)
    values = np.maximum(values, 0) + delta / scale**2
    whitener = support @ basis / np.sqrt(values)[None, :]
    found = np.maximum(np.linalg.eigvalsh(whitener.T @ sigma_b @ whitener), 0)
    found /= found.max(initial=0.0) or 1.0
    return _entropy_rank(np.append(found, np.zeros(width - len(found))))


def alignment(x: np.ndarray, y: np.ndarray, alpha: float = 2.0) -> float:
    """Compute the mean distance between two views of one image, to the power alpha.

    Wang & Isola 2020 (arXiv 2005.10242), section 4.1.1: E ||f(x) - f(y)||^alpha for features on the
    unit sphere. 0 is best, by itself also that of collapsed features; 4 is the largest at alpha 2.

    Args:
        x: features (N, F) of one view of each image.
        y: features (N, F) of the other views, in the same order.
        alpha: the power.

    Returns:
        The mean, 0 to 2^alpha.

    Raises:
        UserError: a feature is not finite.
    """
    chex.assert_equal_shape([x, y])
    return float(np.mean(np.linalg.norm(_on_sphere(x) - _on_sphere(y), axis=1) ** alpha))


def uniformity(x: np.ndarray, t: float = 2.0) -> float:
    """Compute the logarithm of the mean Gaussian potential of all pairs of images.

    Wang & Isola 2020 (arXiv 2005.10242), section 4.1.2: log E exp(-t ||f(x) - f(y)||^2) for
    features on the unit sphere, over all pairs of different images. 0: all alike. Less is better,
    down to about -2 t for points spread evenly over a sphere of many dimensions.

    Args:
        x: features (N, F).
        t: inverse width of the Gaussian.

    Returns:
        The logarithm; NaN for a single image.

    Raises:
        UserError: a feature is not finite.
    """
    x = _on_sphere(x)
    count = len(x)
    if count < 2:
        return float("nan")
    square = np.sum(x**2, axis=1)  # 1, or 0 for a row of zeros
    distance = np.maximum(square[:, None] + square[None, :] - 2 * x @ x.T, 0)
    potential = np.exp(-t * distance)
    return float(np.log((potential.sum() - np.trace(potential)) / (count * (count - 1))))


def _scaled(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Return x (N, F) over its largest entry, float64, and that entry; 1 where all are 0.

    UserError where a value is not finite.
    """
    chex.assert_rank(x, 2)
    x = np.asarray(x, np.float64)
    if bad := np.count_nonzero(~np.isfinite(x)):
        raise UserError(f"features: got {bad} values that are not finite, takes finite values only")
    scale = float(np.abs(x).max(initial=0.0)) or 1.0
    return x / scale, scale


def _on_sphere(x: np.ndarray) -> np.ndarray:
    return unit(_scaled(x)[0])


def _singular_values(x: np.ndarray) -> np.ndarray:
    """Return the singular values, largest first: those of R where x = QR, which is faster."""
    return np.linalg.svd(np.linalg.qr(x, mode="r"), compute_uv=False)


def _support(matrix: np.ndarray) -> np.ndarray:
    """Return the eigenvectors (F, R) of a covariance (F, F) whose eigenvalues are not rounding."""
    values, basis = np.linalg.eigh(matrix)
    floor = values.max(initial=0.0) * len(matrix) * np.finfo(np.float64).eps
    return basis[:, values > floor]


def _entropy_rank(values: np.ndarray) -> float:
    """Return exp(-sum p log p) with p = values / sum + EPSILON; 1 where all values are 0."""
    total = values.sum()
    share = values / (total if total > 0 else 1.0) + EPSILON
    return float(np.exp(-np.sum(share * np.log(share))))


# --- All of them at once --------------------------------------------------------------------------


class Ranking(NamedTuple):
    """How a measure ranks checkpoints."""

    column: str  # of metrics.csv
    score: Callable[[float], float]  # larger is better


# By the names of `probe.best`. Those of features, which are what a run is used for.
RANKINGS = {
    "knn": Ranking("knn_validation", lambda value: value),
    "rankme": Ranking("rankme", lambda value: value),
    "alpha_req": Ranking("alpha_req", lambda value: -abs(value - 1)),
    "lidar": Ranking("lidar", lambda value: value),
    "alignment": Ranking("alignment", lambda value: -value),
    "uniformity": Ranking("uniformity", lambda value: -value),
}
COLUMNS = (
    # of the encoder's features
    *("rankme", "alpha_req", "lidar", "alignment", "uniformity"),
    # of the projections; alpha-ReQ is defined for features alone
    *(f"projection_{name}" for name in ("rankme", "lidar", "alignment", "uniformity")),
)


def measure_views(features: np.ndarray, projections: np.ndarray) -> dict[str, float]:
    """Compute all measures.

    Args:
        features: (N, q, F) of q >= 2 views of each image.
        projections: (N, q, D) of the same views.

    Returns:
        The measures by the names of `COLUMNS`. The spectra are those of the first view, alignment
        is that of the first two, and uniformity is the mean over those two.
    """
    measures = {"alpha_req": alpha_req(features[:, 0])}
    for prefix, x in (("", features), ("projection_", projections)):
        stops.check()
        first, second = x[:, 0], x[:, 1]
        measures |= {
            f"{prefix}rankme": rankme(first),
            f"{prefix}lidar": lidar(x),
            f"{prefix}alignment": alignment(first, second),
            f"{prefix}uniformity": (uniformity(first) + uniformity(second)) / 2,
        }
    return {name: measures[name] for name in COLUMNS}


def make_measure(network: Network, views: Views, key: jax.Array) -> Measure:
    """Return measure(params, stats, image (N, H, W, C) uint8) -> all measures.

    Args:
        network: in evaluation mode here.
        views: makes two views of each image.
        key: the run's. The views are a function of it and of an image's place alone.

    Returns:
        The function. It takes `VIEWS` views of each image, the same ones in every call.
    """
    key = jax.random.fold_in(key, VIEWS_KEY)

    def encode(params: Params, stats: PyTree, place: jax.Array, image: jax.Array) -> Pair:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(place)
        outputs = [network.outputs(params, stats, view) for view in views(keys, image)]
        return tuple(jnp.stack(part, axis=1) for part in zip(*outputs, strict=True))

    def measure(params: Params, stats: PyTree, image: np.ndarray) -> dict[str, float]:
        apply = jax.device_put(Partial(encode, *jax.device_get((params, stats))))
        size = min(BATCH, len(image))
        parts: list[tuple[np.ndarray, ...]] = []
        for start in range(0, len(image), size):
            stops.check()
            # the last batch begins earlier, so that all share one compiled program
            first = min(start, len(image) - size)
            place = np.arange(first, first + size, dtype=np.int32)
            found = jax.device_get(_call(apply, place, image[first : first + size]))
            parts.append(tuple(part[start - first :] for part in found))
        return measure_views(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    return measure


@jax.jit
def _call(apply: Callable, place: jax.Array, image: jax.Array) -> Pair:
    return apply(place, image)


class Measured(NamedTuple):
    """Held-out images that the measures are taken on."""

    split: str  # "test", or "validation": the last training images
    image: np.ndarray  # (N, H, W, C) uint8, at most `MOST`


def validation_images(dataset: Dataset, size: int) -> Measured:
    """Return the `size` training images that the kNN validation classifies, or all."""
    size = min(size, len(dataset.train.label))
    rows = held_out_rows(dataset.train.label, size, "probe.validation_size")
    return Measured("validation", dataset.train.image[rows[spaced(size, MOST)]])


def held_out_images(dataset: Dataset, size: int) -> Measured:
    """Return the test images; where the set has none, `validation_images`."""
    image = dataset.test.image
    if not len(image):
        return validation_images(dataset, size)
    return Measured("test", image[spaced(len(image), MOST)])


def spaced(count: int, most: int) -> np.ndarray:
    """Return at most `most` places in 0..count - 1, evenly spaced: no stored order misleads."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
