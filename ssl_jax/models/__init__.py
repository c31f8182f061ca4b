"""Networks by name, and the trunk (encoder, then projector) that online and target share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError, nearest
from ssl_jax.models.convnet import ConvNet
from ssl_jax.models.heads import MLPHead
from ssl_jax.models.resnet import BasicBlock, Bottleneck, ResNet

ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": lambda **o: ResNet((2, 2, 2, 2), BasicBlock, **o),
    "resnet34": lambda **o: ResNet((3, 4, 6, 3), BasicBlock, **o),
    "resnet50": lambda **o: ResNet((3, 4, 6, 3), Bottleneck, **o),
    "convnet": lambda stem, **o: ConvNet((2, 2, 2, 1), **o),
    "convnet_digits": lambda stem, **o: ConvNet((1, 2, 2), **o),
}
STEMS = ("cifar", "imagenet")
NORMS = ("batch", "group", "none")
INITS = ("pytorch", "glorot")
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def make_encoder(
    name: str,
    *,
    width: int,
    stem: str = "cifar",
    norm: str = "batch",
    init: str = "pytorch",
    precision: str = "float32",
    axis_name: str | None = None,
) -> nn.Module:
    """A module `(image (B, H, W, C) float, train) -> features (B, F)`; UserError for a name it does not know.

    `axis_name` is the mapped axis over which BatchNorm's statistics are shared (None: each device its own).
    """
    for field, value, known in [
        ("encoder.name", name, ENCODERS),
        ("encoder.stem", stem, STEMS),
        ("encoder.norm", norm, NORMS),
        ("init", init, INITS),
        ("precision", precision, PRECISIONS),
    ]:
        if value not in known:
            raise UserError(f"{field}: got {value!r}, {nearest(str(value), known)}")
    return ENCODERS[name](
        width=width, stem=stem, norm=norm, preset=init, dtype=PRECISIONS[precision], axis_name=axis_name
    )


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
    trunk = _Trunk(encoder, projector)

    def init(key, image):
        variables = trunk.init(key, image, train=True)
        return variables["params"], variables.get("batch_stats", {})

    def train(params, stats, image):
        (_, projection), new = trunk.apply(
            {"params": params, "batch_stats": stats}, image, train=True, mutable=["batch_stats"]
        )
        return projection, new.get("batch_stats", {})

    def features(params, stats, image):
        variables = {"params": params["encoder"], "batch_stats": stats.get("encoder", {})}
        return jnp.asarray(encoder.apply(variables, image, train=False))

    return Network(init, train, features)


__all__ = ["ENCODERS", "MLPHead", "Network", "make_encoder", "make_network"]
