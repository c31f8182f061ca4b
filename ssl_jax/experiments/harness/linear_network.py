"""The linear twin: the network of the theory, features f = W x and a linear predictor W_p, trained
by our own step.

`dynamics.theory` says what gradient descent in small steps does to it. Here the same step,
optimizer, predictor and target average that train every other network take those steps: views are
x_i = x̄ + n_i, the loss is the squared distance. `theory.mapping` makes a flow of the settings,
whose names `make_twin` shares; the error is of first order in the step.

Matrices act on column vectors as in the theory: W and the target's W_a (D, N), W_p (D, D).
Everything is of one twin and may be traced, learning rates and decays too: `vmap` at the call site
trains a whole phase diagram at once.
"""

from collections.abc import Callable
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
from ssl_jax.train.pretrain import make_pretrain_step
from ssl_jax.train.state import PretrainState, init_state
from ssl_jax.types import Step

GROUPS = {"trunk": "(encoder|projector)/", "predictor": "predictor/"}


# --- Data -----------------------------------------------------------------------------------------


def exact_moments(x: np.ndarray, x_prime: np.ndarray, seed: int = 0) -> np.ndarray:
    """(3N, 3, N) float32: x̄, n₁ and n₂ whose second moments over the batch are X, X' and X', those
    across them 0.

    A step on this batch is a step of the population's gradient, with nothing left of chance; X and
    X' (N, N).
    """
    size = len(x)
    noise = np.random.default_rng(seed).normal(size=(3 * size, 3 * size))
    orthonormal = np.linalg.qr(noise)[0].reshape(3 * size, 3, size) * np.sqrt(3 * size)
    return np.einsum("bkn,knm->bkm", orthonormal, _roots(x, x_prime)).astype(np.float32)


def exact_views(keys: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two views x̄ + n₁ and x̄ + n₂ of `exact_moments`, the same ones at every step: keys go
    unused.
    """
    return image[:, 0] + image[:, 1], image[:, 0] + image[:, 2]


def _roots(x: np.ndarray, x_prime: np.ndarray) -> np.ndarray:
    """(3, N, N): symmetric square roots of X, X' and X'."""
    chex.assert_shape([x, x_prime], (len(x), len(x)))
    values, vectors = np.linalg.eigh(np.stack([x, x_prime, x_prime]))
    return (vectors * np.sqrt(np.maximum(values, 0))[:, None, :]) @ np.swapaxes(vectors, 1, 2)


# --- The network and its step ---------------------------------------------------------------------


def linear_network(w: jax.Array) -> Network:
    """f = W x without a projector, for inputs (B, N); it begins at `w`."""

    def init(key, image):
        return {"encoder": {"linear": {"kernel": w.T}}, "projector": {}}, {}

    def features(params, stats, image):
        return matmul(image, params["encoder"]["linear"]["kernel"])

    return Network(
        init, lambda params, stats, image: (features(params, stats, image), stats), features
    )


def two_rates(
    *,
    learning_rate,
    predictor_learning_rate,
    weight_decay=0.0,
    predictor_weight_decay=0.0,
    momentum=0.0,
    **decay: str,
) -> Optimizer:
    """Gradient descent in which the predictor has its own learning rate and decay; numbers may be
    traced.

    decay: the fields `decay` and `decay_scale` of `optim.make_optimizer`.
    """
    numbers = {
        "trunk": (learning_rate, weight_decay),
        "predictor": (predictor_learning_rate, predictor_weight_decay),
    }
    optimizers = {
        group: make_optimizer("momentum", rate, momentum=momentum, weight_decay=shrink, **decay)
        for group, (rate, shrink) in numbers.items()
    }
    return by_group(optimizers, lambda params: assign_groups(params, GROUPS))


def make_twin(
    w: jax.Array,
    w_p: jax.Array,
    *,
    tau: Any = 0.0,
    loss_scale: Any = 0.5,
    symmetric: bool = False,
    views: Callable = exact_views,
    **rates: Any,
) -> tuple[PretrainState, Step]:
    """(state, step) that begins at W and W_p, the target at W; rates: those of `two_rates`.

    All settings are called as in `theory.mapping`, whose c is twice the `loss_scale` here: the step
    sums both directions of the views. tau: of the target's average, a plain 0 for none.
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
        objective=OBJECTIVES["euclidean"],
        loss_scale=loss_scale,
    )
    image = jnp.zeros((2, w.shape[1]))
    return init_state(jax.random.key(0), image, network, predictor, optimizer, averaged), step


def advance(
    state: PretrainState, step: Step, image: jax.Array, key: jax.Array, steps: int
) -> PretrainState:
    """The state after so many more steps on the batch `image`, in one loop on the device."""
    batch = {"image": image, "position": jnp.arange(len(image), dtype=jnp.int32)}
    return jax.lax.scan(lambda state, _: (step(state, batch, key)[0], None), state, length=steps)[0]
