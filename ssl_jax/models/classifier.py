"""A classifier: an encoder with a linear head, as pure functions."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError, nearest
from ssl_jax.models.layers import INITS, linear
from ssl_jax.types import Params


class Classifier(NamedTuple):
    """Pure functions of a classifier.

    `params` is {"encoder", "head"}, and `stats` is {"encoder"} or {}.
    """

    # init(key, image (B, H, W, C)) -> (params, stats)
    init: Callable[[jax.Array, jax.Array], tuple[Params, Params]]
    # train(params, stats, image, key) -> (logits (B, K), new stats). BatchNorm uses and records the
    # statistics of this batch; the key draws the dropout.
    train: Callable[[Params, Params, jax.Array, jax.Array], tuple[jax.Array, Params]]
    # logits(params, stats, image) -> (B, K) float32, in evaluation mode
    logits: Callable[[Params, Params, jax.Array], jax.Array]


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


def make_classifier(
    encoder: nn.Module, num_classes: int, *, dropout: float = 0.0, init: str = "pytorch"
) -> Classifier:
    """Join the encoder, dropout on its features and a linear layer into a `Classifier`.

    Args:
        encoder: module (image (B, H, W, C), train) -> features (B, F).
        num_classes: number K of classes.
        dropout: probability of setting a feature to zero, in [0, 1).
        init: initialisation of the linear layer, one of `layers.INITS`.

    Returns:
        The classifier's functions.

    Raises:
        UserError: for an illegal `dropout` or `init`.
    """
    if init not in INITS:
        raise UserError(f"init: got {init!r}, {nearest(str(init), INITS)}")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout: got {dropout!r}, takes a number in [0, 1)")
    module = _Headed(encoder, num_classes, dropout, init)

    def initialise(key: jax.Array, image: jax.Array) -> tuple[Params, Params]:
        variables = module.init(key, image, train=True)
        return variables["params"], variables.get("batch_stats", {})

    def train(
        params: Params, stats: Params, image: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Params]:
        variables = {"params": params, "batch_stats": stats}
        logits, new = module.apply(
            variables, image, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return logits, new.get("batch_stats", {})

    def logits(params: Params, stats: Params, image: jax.Array) -> jax.Array:
        return jnp.asarray(
            module.apply({"params": params, "batch_stats": stats}, image, train=False)
        )

    return Classifier(initialise, train, logits)
