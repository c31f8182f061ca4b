"""A classifier: an encoder with a linear head, as pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError, nearest
from ssl_jax.models.layers import INITS, linear


class Classifier(NamedTuple):
    """init(key, image (B, H, W, C)) -> (params {"encoder", "head"}, stats {"encoder"} or {});

    train(params, stats, image, key) -> (logits (B, K), new stats): BatchNorm uses and records this batch, `key`
    draws the dropout;
    logits(params, stats, image) -> (B, K), float32, in evaluation mode.
    """

    init: Callable[..., tuple[Any, Any]]
    train: Callable[..., tuple[jax.Array, Any]]
    logits: Callable[..., jax.Array]


class _Headed(nn.Module):
    """Names the two parts in the parameter tree: {"encoder": ..., "head": ...}."""

    encoder: nn.Module
    num_classes: int
    dropout: float
    preset: str

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> jax.Array:
        features = self.encoder(image, train)
        features = nn.Dropout(self.dropout, deterministic=not train)(features)
        return linear(self.num_classes, features.shape[-1], self.preset, name="head")(features)


def make_classifier(encoder: nn.Module, num_classes: int, *, dropout: float = 0.0, init: str = "pytorch") -> Classifier:
    """The encoder with dropout and a linear layer on its features; UserError for a field that it cannot take."""
    if init not in INITS:
        raise UserError(f"init: got {init!r}, {nearest(str(init), INITS)}")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout: got {dropout!r}, takes a number in [0, 1)")
    module = _Headed(encoder, num_classes, dropout, init)

    def initialise(key, image):
        variables = module.init(key, image, train=True)
        return variables["params"], variables.get("batch_stats", {})

    def train(params, stats, image, key):
        variables = {"params": params, "batch_stats": stats}
        logits, new = module.apply(variables, image, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        return logits, new.get("batch_stats", {})

    def logits(params, stats, image):
        return jnp.asarray(module.apply({"params": params, "batch_stats": stats}, image, train=False))

    return Classifier(initialise, train, logits)
