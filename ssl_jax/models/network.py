"""The trunk (encoder, then projector) that online and target network share, as pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError


class _Trunk(nn.Module):
    """Names the two parts in the parameter tree: {"encoder": ..., "projector": ...}."""

    encoder: nn.Module
    projector: nn.Module

    def __call__(self, image: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        features = self.encoder(image, train)
        return features, self.projector(features, train)


class Network(NamedTuple):
    """Pure functions of a trunk.

    init(key, image (B, H, W, C)) -> (params, stats), both {"encoder", "projector"};
    train(params, stats, image) -> (projection (B, D), new stats): BatchNorm uses and records this batch;
    features(params, stats, image) -> (B, F): the encoder alone in evaluation mode.
    """

    init: Callable[..., tuple[Any, Any]]
    train: Callable[..., tuple[jax.Array, Any]]
    features: Callable[..., jax.Array]


def make_network(encoder: nn.Module, projector: nn.Module) -> Network:
    """Joins encoder and projector into a `Network`."""
    if getattr(encoder, "dropout", 0):
        raise UserError(f"encoder.dropout: got {encoder.dropout}, pretraining takes 0")  # pyright: ignore[reportAttributeAccessIssue]
    trunk = _Trunk(encoder, projector)

    def init(key, image):
        variables = trunk.init(key, image, train=True)
        return variables["params"], variables.get("batch_stats", {})

    @jax.jit  # inside a step, so that Python goes through the layers once, not for each view and target
    def passed(params, stats, image):
        (_, projection), new = trunk.apply(
            {"params": params, "batch_stats": stats}, image, train=True, mutable=["batch_stats"]
        )
        return projection, new.get("batch_stats", {})

    def train(params, stats, image):
        # Every call alike, for one trace of all: without the predictor's parameters, which a target lacks, and without
        # derivatives by the statistics, which have none in training but which a second view takes from the first.
        own = {part: params[part] for part in ("encoder", "projector") if part in params}
        return passed(own, jax.lax.stop_gradient(stats), image)

    def features(params, stats, image):
        variables = {"params": params["encoder"], "batch_stats": stats.get("encoder", {})}
        return jnp.asarray(encoder.apply(variables, image, train=False))

    return Network(init, train, features)
