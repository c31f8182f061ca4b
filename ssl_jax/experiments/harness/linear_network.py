"""The linear twin: the network of the theory, trained by our own training step.

Features are f = W x and the predictor is linear, W_p. `dynamics.theory` gives what gradient
descent in small steps does to such a network under the squared distance, and `dynamics.cosine`
under the cosine loss. Here the step, optimizer, predictor and target average of every other network
take these steps. Views are x_i = x̄ + n_i. `theory.mapping` turns settings into a flow; `make_twin`
shares its names. The error is of first order in the step.

Matrices act on column vectors as in the theory: W and the target's W_a are (D, N), W_p is (D, D).
All functions are of one twin and may be traced, with learning rates and decays. So `vmap` around
them trains a whole phase diagram at once.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.linalg import matmul
from ssl_jax.losses import OBJECTIVES
from ssl_jax.models import Network
from ssl_jax.optim import Optimizer, assign_groups, by_group, make_optimizer
from ssl_jax.predictors import make_predictor
from ssl_jax.train.pretrain import Views, make_pretrain_step
from ssl_jax.train.state import PretrainState, init_state
from ssl_jax.types import Params, Scalar, Step

GROUPS = {"trunk": "(encoder|projector)/", "predictor": "predictor/"}


# --- Data -----------------------------------------------------------------------------------------


def exact_moments(x: np.ndarray, x_prime: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return a batch whose second moments are exactly those of a population.

    A step on this batch is a step of the population's gradient, without sampling error.

    Args:
        x: X (N, N), the second moment of x̄.
        x_prime: X' (N, N), the second moment of the noise n₁ and n₂.
        seed: of the random orthonormal basis.

    Returns:
        (3N, 3, N) float32: x̄, n₁ and n₂. Their second moments over the batch are X, X' and X',
        those between them 0.
    """
    size = len(x)
    noise = np.random.default_rng(seed).normal(size=(3 * size, 3 * size))
    orthonormal = np.linalg.qr(noise)[0].reshape(3 * size, 3, size) * np.sqrt(3 * size)
    return np.einsum("bkn,knm->bkm", orthonormal, roots(x, x_prime)).astype(np.float32)


def exact_views(keys: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the views x̄ + n₁ and x̄ + n₂, (B, N) each, of a batch (B, 3, N) of `exact_moments`.

    They are the same at every step: `keys` is not used.
    """
    return image[:, 0] + image[:, 1], image[:, 0] + image[:, 2]


def sampled_views(x: np.ndarray, x_prime: np.ndarray) -> Views:
    """Return views(keys (B,), image) of a Gaussian population, new at every step.

    Args:
        x: X (N, N), the covariance of x̄.
        x_prime: X' (N, N), the covariance of the noise n₁ and n₂.

    Returns:
        The views, (B, N) each. Of the images only the number counts.
    """
    matrices = jnp.asarray(roots(x, x_prime), jnp.float32)

    def views(keys: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        normal = jax.vmap(lambda key: jax.random.normal(key, (3, len(x))))(keys)
        return exact_views(keys, jnp.einsum("bkn,knm->bkm", normal, matrices, precision="highest"))

    return views


def roots(x: np.ndarray, x_prime: np.ndarray) -> np.ndarray:
    """Return the symmetric square roots of X, X' and X', (3, N, N)."""
    chex.assert_shape([x, x_prime], (len(x), len(x)))
    values, vectors = np.linalg.eigh(np.stack([x, x_prime, x_prime]))
    return (vectors * np.sqrt(np.maximum(values, 0))[:, None, :]) @ np.swapaxes(vectors, 1, 2)


# --- The network and its step ---------------------------------------------------------------------


def linear_network(w: jax.Array) -> Network:
    """Return the network f = W x without projector, for inputs (B, N), that begins at `w`."""

    def init(key: jax.Array, image: jax.Array) -> tuple[Params, Params]:
        return {"encoder": {"linear": {"kernel": w.T}}, "projector": {}}, {}

    def features(params: Params, stats: Params, image: jax.Array) -> jax.Array:
        return matmul(image, params["encoder"]["linear"]["kernel"])

    def outputs(params: Params, stats: Params, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        f = features(params, stats, image)
        return f, f

    return Network(
        init,
        lambda params, stats, image: (features(params, stats, image), stats),
        features,
        outputs,
    )


def two_rates(
    *,
    learning_rate: Scalar,
    predictor_learning_rate: Scalar,
    weight_decay: Scalar = 0.0,
    predictor_weight_decay: Scalar = 0.0,
    momentum: float = 0.0,
    **decay: str,
) -> Optimizer:
    """Return gradient descent with its own learning rate and decay for the predictor.

    Args:
        learning_rate: of encoder and projector. Rates and decays may be traced.
        predictor_learning_rate: of the predictor.
        weight_decay: of encoder and projector.
        predictor_weight_decay: of the predictor.
        momentum: of both.
        **decay: the fields `decay` and `decay_scale` of `optim.make_optimizer`.

    Returns:
        The optimizer of all parameters.
    """
    rates = {
        "trunk": (learning_rate, weight_decay),
        "predictor": (predictor_learning_rate, predictor_weight_decay),
    }
    optimizers = {
        group: make_optimizer("momentum", rate, momentum=momentum, weight_decay=shrink, **decay)
        for group, (rate, shrink) in rates.items()
    }
    return by_group(optimizers, lambda params: assign_groups(params, GROUPS))


def make_twin(
    w: jax.Array,
    w_p: jax.Array,
    *,
    tau: Scalar = 0.0,
    loss_scale: Any = 0.5,
    symmetric: bool = False,
    views: Views = exact_views,
    loss: str = "euclidean",
    **rates: Any,
) -> tuple[PretrainState, Step]:
    """Return a state that begins at W and W_p, with the target at W, and its training step.

    Settings have the names of `theory.mapping`, whose c is twice the `loss_scale` here: the step
    sums both directions of the views.

    Args:
        w: W (D, N).
        w_p: W_p (D, D).
        tau: rate of the target's average. A plain 0 means no average.
        loss_scale: factor of the loss.
        symmetric: whether the predictor is kept symmetric.
        views: (keys (B,), batch) -> two views (B, N).
        loss: a key of OBJECTIVES.
        **rates: the arguments of `two_rates`.

    Returns:
        (state, step), as `train.pretrain` makes them.
    """
    chex.assert_shape(w_p, (len(w), len(w)))
    network, linear = linear_network(w), make_predictor("linear", len(w), symmetric=symmetric)
    predictor = linear._replace(
        init=lambda key: ({"linear": {"kernel": w_p.T}}, linear.init(key)[1])
    )
    optimizer = two_rates(**rates)
    averaged = not (isinstance(tau, int | float) and tau == 0)
    step = make_pretrain_step(
        views=views,
        network=network,
        predictor=predictor,
        optimizer=optimizer,
        tau=(lambda step: tau) if averaged else None,
        objective=OBJECTIVES[loss],
        loss_scale=loss_scale,
    )
    image = jnp.zeros((2, w.shape[1]))
    return init_state(jax.random.key(0), image, network, predictor, optimizer, averaged), step


def advance(
    state: PretrainState, step: Step, image: jax.Array, key: jax.Array, steps: int
) -> PretrainState:
    """Take steps on one batch, in one loop on the device.

    Args:
        state: where to begin.
        step: as `make_twin` returns it.
        image: the batch, (B, ...), as the step's views take it.
        key: of all steps.
        steps: number of steps.

    Returns:
        The state after the steps.
    """
    batch = {"image": image, "position": jnp.arange(len(image), dtype=jnp.int32)}
    return jax.lax.scan(lambda state, _: (step(state, batch, key)[0], None), state, length=steps)[0]
