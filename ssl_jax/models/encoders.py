"""Encoders by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ssl_jax.errors import UserError, nearest
from ssl_jax.models.convnet import ConvNet
from ssl_jax.models.convnext import ConvNeXt
from ssl_jax.models.layers import ACTIVATIONS, INITS, NORMS, Style
from ssl_jax.models.mlp import MLP
from ssl_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from ssl_jax.models.swin import HEAD_CHANNELS, Swin

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# The fields that only some architectures honour: what stands for "as the architecture has it", and what else there is.
AUTO = {"stem": "cifar", "norm": "auto", "activation": "auto", "residual": True, "standardise": False, "depth": 0}
AUTO |= {"dropout": 0.0}
CHOICES = {"stem": ("cifar", "imagenet"), "norm": ("auto", *NORMS), "activation": ("auto", *ACTIVATIONS)}


class Architecture(NamedTuple):
    """build(width=, style=, and the other fields that it honours) -> module; its own width, norm and fields."""

    build: Callable[..., nn.Module]
    width: int
    norm: str
    honours: tuple[str, ...]


def _resnet(depths: tuple[int, ...], block: type[nn.Module]) -> Architecture:
    honours = ("stem", "norm", "activation", "residual", "standardise")
    return Architecture(lambda **o: ResNet(depths, block, **o), 64, "batch", honours)


def _convnet(strides: tuple[int, ...]) -> Architecture:
    def build(depth, **options):
        if depth and depth < len(strides):
            raise UserError(f"encoder.depth: got {depth}, takes 0 or at least {len(strides)} layers")
        return ConvNet(strides + (1,) * (depth - len(strides)), **options)

    return Architecture(build, 32, "batch", ("norm", "activation", "standardise", "depth"))


def _mlp() -> Architecture:
    honours = ("norm", "activation", "standardise", "depth", "dropout")
    return Architecture(lambda depth, **o: MLP(depth or 2, **o), 256, "none", honours)


def _staged(module: Callable[..., nn.Module], depths: tuple[int, ...], width: int, unit: int = 1) -> Architecture:
    """ConvNeXt or Swin: a depth of k means (k, k, 3k, k), and widths come in multiples of `unit`."""

    def build(width, style, depth):
        if width % unit:
            raise UserError(f"encoder.width: got {width}, takes a multiple of {unit} here")
        blocks = (depth, depth, 3 * depth, depth) if depth else depths
        return module(blocks, width, preset=style.preset, dtype=style.dtype)

    return Architecture(build, width, "layer", ("depth",))


ENCODERS: dict[str, Architecture] = {
    "resnet18": _resnet((2, 2, 2, 2), BasicBlock),
    "resnet34": _resnet((3, 4, 6, 3), BasicBlock),
    "resnet50": _resnet((3, 4, 6, 3), Bottleneck),
    "convnet": _convnet((2, 2, 2, 1)),
    "convnet_digits": _convnet((1, 2, 2)),
    "mlp": _mlp(),
    "convnext_tiny": _staged(ConvNeXt, (3, 3, 9, 3), 96),
    "convnext_small": _staged(ConvNeXt, (3, 3, 27, 3), 96),
    "convnext_base": _staged(ConvNeXt, (3, 3, 27, 3), 128),
    "swin_tiny": _staged(Swin, (2, 2, 6, 2), 96, unit=HEAD_CHANNELS),
}


def make_encoder(
    name: str,
    *,
    width: int,
    stem: str = "cifar",
    norm: str = "auto",
    activation: str = "auto",
    residual: bool = True,
    standardise: bool = False,
    depth: int = 0,
    dropout: float = 0.0,
    init: str = "pytorch",
    precision: str = "float32",
    axis_name: str | None = None,
) -> nn.Module:
    """A module `(image (B, H, W, C) float, train) -> features (B, F)`; UserError for what it does not take.

    "auto", and 0 for width or depth: the architecture's own. `axis_name` is the mapped axis over which BatchNorm's
    statistics are shared (None: each device its own). Dropout draws from the stream "dropout".
    """
    _require("encoder.name", name, ENCODERS)
    _require("init", init, INITS)
    _require("precision", precision, PRECISIONS)
    built = ENCODERS[name]
    fields = {"stem": stem, "norm": norm, "activation": activation, "residual": residual, "standardise": standardise}
    fields |= {"depth": depth, "dropout": dropout}
    _check(name, built.honours, fields | {"width": width})
    style = Style(
        norm=built.norm if norm == "auto" else norm,
        activation="relu" if activation == "auto" else activation,
        standardise=standardise,
        preset=init,
        dtype=PRECISIONS[precision],
        axis_name=axis_name,
    )
    own = {field: fields[field] for field in built.honours if not hasattr(style, field)}
    return built.build(width=width or built.width, style=style, **own)


def _require(field: str, value, known) -> None:
    if value not in known:
        raise UserError(f"{field}: got {value!r}, {nearest(str(value), known)}")


def _check(name: str, honours: tuple[str, ...], fields: dict[str, Any]) -> None:
    """Each field is one that the architecture honours, or is left as it has it."""
    for field, value in fields.items():
        if field in CHOICES:
            _require(f"encoder.{field}", value, CHOICES[field])
        if field in AUTO and field not in honours and value != AUTO[field]:
            raise UserError(f"encoder.{field}: got {value!r}, {name} takes {AUTO[field]}")
    for field in ("width", "depth"):
        if fields[field] < 0:
            raise UserError(f"encoder.{field}: got {fields[field]}, takes a number from 1, or 0 for its own")
    if not 0 <= fields["dropout"] < 1:
        raise UserError(f"encoder.dropout: got {fields['dropout']}, takes a number in [0, 1)")
