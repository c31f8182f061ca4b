"""Everything that a pretraining run remembers, as one frozen pytree of arrays."""

# JAX leaves the types of leaves, and of functions over them, unknown.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax.models import Network
from ssl_jax.optim import Optimizer
from ssl_jax.predictors import Memory, Predictor
from ssl_jax.types import Params, PyTree


class PretrainState(NamedTuple):
    """The state of pretraining, all that a checkpoint holds."""

    step: jax.Array  # () int32, steps taken so far
    params: Params  # {"encoder", "projector", "predictor"}, the online network
    stats: PyTree  # BatchNorm's running statistics of encoder and projector
    target: Params  # {"encoder", "projector"}, or {} where no average is kept
    opt_state: PyTree  # the optimizer's
    memory: Memory  # the predictor's: averages over batches, of which F is one


def init_key(key: jax.Array) -> jax.Array:
    """Return the key of a run's first weights, apart from all that its key draws in its steps."""
    return jax.random.fold_in(key, 0x1217)


def init_state(
    key: jax.Array,
    image: jax.Array,
    network: Network,
    predictor: Predictor,
    optimizer: Optimizer,
    has_target: bool,
) -> PretrainState:
    """Draw a fresh state. The target starts as a copy of the online network.

    Args:
        key: draws the weights.
        image: images (B, H, W, C) in the shape of those to come.
        network: encoder and projector.
        predictor: draws its parameters and its memory from a key.
        optimizer: gives the state that belongs to the parameters.
        has_target: whether a target network is kept apart from the online one.

    Returns:
        The state at step 0.
    """
    trunk_key, predictor_key = jax.random.split(key)
    trunk, stats = network.init(trunk_key, image)
    predictor_params, memory = predictor.init(predictor_key)
    params = {**trunk, "predictor": predictor_params}
    # A copy, not a reference: a buffer that stands twice in the state cannot be donated.
    target: Params = jax.tree.map(jnp.copy, trunk) if has_target else {}
    return PretrainState(
        jnp.zeros((), jnp.int32), params, stats, target, optimizer.init(params), memory
    )
