"""Encoders by name."""

from collections.abc import Callable, Collection
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
# The fields that only some architectures take, with the value that means "the architecture's own".
OWN_VALUE = {
    "stem": "cifar",
    "norm": "auto",
    "activation": "auto",
    "residual": True,
    "standardise": False,
    "depth": 0,
    "dropout": 0.0,
}
# The values that a field takes, where it takes a few names.
CHOICES = {
    "stem": ("cifar", "imagenet"),
    "norm": ("auto", *NORMS),
    "activation": ("auto", *ACTIVATIONS),
}


class Architecture(NamedTuple):
    """An encoder by name and what it takes."""

    # build(width=, style=, and those of `fields` that a Style does not have) -> module
    build: Callable[..., nn.Module]
    width: int  # its own width
    norm: str  # its own normalisation
    fields: tuple[str, ...]  # names out of OWN_VALUE that it takes


def _resnet(depths: tuple[int, ...], block: type[nn.Module]) -> Architecture:
    fields = ("stem", "norm", "activation", "residual", "standardise")
    return Architecture(lambda **o: ResNet(depths, block, **o), 64, "batch", fields)


def _convnet(strides: tuple[int, ...]) -> Architecture:
    def build(depth: int, **options: Any) -> nn.Module:
        if depth and depth < len(strides):
            raise UserError(
                f"encoder.depth: got {depth}, takes 0 or at least {len(strides)} layers"
            )
        return ConvNet(strides + (1,) * (depth - len(strides)), **options)

    return Architecture(build, 32, "batch", ("norm", "activation", "standardise", "depth"))


def _mlp() -> Architecture:
    fields = ("norm", "activation", "standardise", "depth", "dropout")
    return Architecture(lambda depth, **o: MLP(depth or 2, **o), 256, "none", fields)


def _staged(
    module: Callable[..., nn.Module], depths: tuple[int, ...], width: int, unit: int = 1
) -> Architecture:
    """Return ConvNeXt or Swin.

    A depth of k means stages of (k, k, 3k, k) blocks. The width is a multiple of `unit`.
    """

    def build(width: int, style: Style, depth: int) -> nn.Module:
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
    """Build an encoder by name.

    Args:
        name: one of ENCODERS.
        width: channels of the first stage, or width of the layers; 0 for the architecture's own.
        stem: first layers of a ResNet, "cifar" or "imagenet".
        norm: normalisation, one of `layers.NORMS`, or "auto" for the architecture's own.
        activation: one of `layers.ACTIVATIONS`, or "auto" for ReLU.
        residual: whether a ResNet has shortcuts.
        standardise: whether kernels are standardised.
        depth: number of layers, or of blocks per stage; 0 for the architecture's own.
        dropout: probability of setting an activation to zero, in [0, 1). It draws from the stream
            "dropout".
        init: initialisation, one of `layers.INITS`.
        precision: dtype of the computation, "float32" or "bfloat16". Parameters are float32.
        axis_name: mapped axis over which BatchNorm shares its statistics. With None each device has
            its own.

    Returns:
        A module (image (B, H, W, C) float, train) -> features (B, F) float32.

    Raises:
        UserError: names the field whose value is illegal or which the architecture does not take.
    """
    _require("encoder.name", name, ENCODERS)
    _require("init", init, INITS)
    _require("precision", precision, PRECISIONS)
    architecture = ENCODERS[name]
    fields = {
        "stem": stem,
        "norm": norm,
        "activation": activation,
        "residual": residual,
        "standardise": standardise,
        "depth": depth,
        "dropout": dropout,
    }
    _check(name, architecture.fields, fields | {"width": width})
    style = Style(
        norm=architecture.norm if norm == "auto" else norm,
        activation="relu" if activation == "auto" else activation,
        standardise=standardise,
        preset=init,
        dtype=PRECISIONS[precision],
        axis_name=axis_name,
    )
    own = {field: fields[field] for field in architecture.fields if not hasattr(style, field)}
    return architecture.build(width=width or architecture.width, style=style, **own)


def _require(field: str, value: Any, known: Collection[str]) -> None:
    """Raise a UserError if the value is not known."""
    if value not in known:
        raise UserError(f"{field}: got {value!r}, {nearest(str(value), known)}")


def _check(name: str, taken: tuple[str, ...], fields: dict[str, Any]) -> None:
    """Raise a UserError for an illegal value or a field that the architecture does not take."""
    for field, value in fields.items():
        if field in CHOICES:
            _require(f"encoder.{field}", value, CHOICES[field])
        if field in OWN_VALUE and field not in taken and value != OWN_VALUE[field]:
            raise UserError(f"encoder.{field}: got {value!r}, {name} takes {OWN_VALUE[field]}")
    for field in ("width", "depth"):
        if fields[field] < 0:
            raise UserError(
                f"encoder.{field}: got {fields[field]}, takes a number from 1, or 0 for its own"
            )
    if not 0 <= fields["dropout"] < 1:
        raise UserError(f"encoder.dropout: got {fields['dropout']}, takes a number in [0, 1)")
