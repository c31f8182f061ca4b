"""Everything that a pretraining run remembers, as one frozen pytree of arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax.models import Network
from ssl_jax.optim import Optimizer
from ssl_jax.predictors import Memory, Predictor
from ssl_jax.types import Params, PyTree


class PretrainState(NamedTuple):
    """step () int32, steps taken so far; params {"encoder", "projector", "predictor"}, online;
    stats, BatchNorm's running statistics of encoder and projector; target {"encoder", "projector"},
    or {} where no average is kept; opt_state; memory, the predictor's (the correlation F).
    """

    step: jax.Array
    params: Params
    stats: PyTree
    target: Params
    opt_state: PyTree
    memory: Memory


def init_key(key: jax.Array) -> jax.Array:
    """The key from which the run of this key draws its first weights, apart from all that it draws
    in its steps.
    """
    return jax.random.fold_in(key, 0x1217)


def init_state(
    key: jax.Array,
    image: jax.Array,
    network: Network,
    predictor: Predictor,
    optimizer: Optimizer,
    has_target: bool,
) -> PretrainState:
    """A fresh state for images shaped like `image` (B, H, W, C). The target starts as a copy of the
    online net.
    """
    trunk_key, predictor_key = jax.random.split(key)
    trunk, stats = network.init(trunk_key, image)
    predictor_params, memory = predictor.init(predictor_key)
    params = {**trunk, "predictor": predictor_params}
    # A copy, not a reference: a buffer that stands twice in the state cannot be donated.
    target = jax.tree.map(jnp.copy, trunk) if has_target else {}
    return PretrainState(
        jnp.zeros((), jnp.int32), params, stats, target, optimizer.init(params), memory
    )
