"""The trunk of online and target network, an encoder and a projector, as pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError
from ssl_jax.types import Params


class _Trunk(nn.Module):
    """Names the two parts in the parameter tree: {"encoder": ..., "projector": ...}."""

    encoder: nn.Module
    projector: nn.Module

    def __call__(self, image: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        features = self.encoder(image, train)
        return features, self.projector(features, train)


class Network(NamedTuple):
    """Pure functions of a trunk. `params` and `stats` are both {"encoder", "projector"}."""

    # init(key, image (B, H, W, C)) -> (params, stats)
    init: Callable[[jax.Array, jax.Array], tuple[Params, Params]]
    # train(params, stats, image) -> (projection (B, D), new stats). BatchNorm uses and records the
    # statistics of this batch.
    train: Callable[[Params, Params, jax.Array], tuple[jax.Array, Params]]
    # features(params, stats, image) -> (B, F): the encoder alone, in evaluation mode
    features: Callable[[Params, Params, jax.Array], jax.Array]
    # outputs(params, stats, image) -> (features (B, F), projection (B, D)), in evaluation mode
    outputs: Callable[[Params, Params, jax.Array], tuple[jax.Array, jax.Array]]


def make_network(encoder: nn.Module, projector: nn.Module) -> Network:
    """Join encoder and projector into a `Network`; a UserError if the encoder has dropout."""
    if getattr(encoder, "dropout", 0):
        dropout = encoder.dropout  # pyright: ignore[reportAttributeAccessIssue], a field of some encoders
        raise UserError(f"encoder.dropout: got {dropout}, pretraining takes 0")
    trunk = _Trunk(encoder, projector)

    def init(key: jax.Array, image: jax.Array) -> tuple[Params, Params]:
        variables = trunk.init(key, image, train=True)
        return variables["params"], variables.get("batch_stats", {})

    # Jitted inside a step, so that Python traces the layers once and not for each view and target.
    @jax.jit
    def project(params: Params, stats: Params, image: jax.Array) -> tuple[jax.Array, Params]:
        (_, projection), new = trunk.apply(
            {"params": params, "batch_stats": stats}, image, train=True, mutable=["batch_stats"]
        )
        return projection, new.get("batch_stats", {})

    def train(params: Params, stats: Params, image: jax.Array) -> tuple[jax.Array, Params]:
        # All calls look alike, so that one trace serves them. The predictor's parameters are left
        # out because a target has none. `stop_gradient` removes the derivatives by the statistics:
        # a second view takes the statistics from the first, but in training they have no effect.
        own = {part: params[part] for part in ("encoder", "projector") if part in params}
        return project(own, jax.lax.stop_gradient(stats), image)

    def features(params: Params, stats: Params, image: jax.Array) -> jax.Array:
        variables = {"params": params["encoder"], "batch_stats": stats.get("encoder", {})}
        return jnp.asarray(encoder.apply(variables, image, train=False))

    def outputs(params: Params, stats: Params, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = {part: params[part] for part in ("encoder", "projector")}
        found: Any = trunk.apply({"params": own, "batch_stats": stats}, image, train=False)
        return found

    return Network(init, train, features, outputs)
