"""Activations, initialisations and normalisations by name, and the layers that networks share.

Initialisations (`INITS`):
    "pytorch": convolutions He-normal by fan-out, linear layers and their biases uniform in
        ±1/sqrt(fan_in). This is the original authors' code.
    "glorot": Glorot-uniform kernels, the Keras defaults of the replication.
    "gaussian": normal, standard deviation 0.01.
    "he": normal, variance 2 / fan_in (He et al. 2015, arXiv 1502.01852, equation 10).
    "orthogonal": Saxe et al. 2014, arXiv 1312.6120.
Biases are zero in all but the first.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.errors import UserError
from ssl_jax.models.batch_norm import BatchNorm
from ssl_jax.models.cpu.convolution import convolve, convolve_depthwise, convolve_patches

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "gelu": functools.partial(nn.gelu, approximate=False),
}
NORMS = ("batch", "layer", "group", "instance", "none")
Initialiser = Callable[..., jax.Array]  # initialiser(key, shape, dtype) -> array

# U(±1/sqrt(fan_in)), PyTorch's default for Linear and Conv2d, has variance 1 / (3 fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
KERNEL_INITS = {
    "glorot": nn.initializers.glorot_uniform(),
    "gaussian": nn.initializers.normal(0.01),
    "he": nn.initializers.he_normal(),
    "orthogonal": nn.initializers.orthogonal(),
}
INITS = ("pytorch", *KERNEL_INITS)


def _uniform(bound: float) -> Initialiser:
    """Return the initialiser U(-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv_init(preset: str, stem: bool = False) -> Initialiser:
    """Return the kernel initialiser of a convolution.

    With `stem` and "pytorch" it is torch's default: the original code replaces the stem for CIFAR
    after it has initialised the network.
    """
    return (KERNEL_INITS | {"pytorch": torch_uniform if stem else he_fan_out})[preset]


def linear_init(preset: str, bias_fan_in: int | None = None) -> Initialiser:
    """Return the initialiser of a linear layer's kernel, or of its bias if `bias_fan_in` is given.

    bias_fan_in: the layer's number of inputs.
    """
    if bias_fan_in is None:
        return (KERNEL_INITS | {"pytorch": torch_uniform})[preset]
    return _uniform(1 / math.sqrt(bias_fan_in)) if preset == "pytorch" else nn.initializers.zeros


def transformer_init(preset: str) -> Initialiser:
    """Return the kernel initialiser of ConvNeXt and Swin.

    Here "pytorch" is normal with standard deviation 0.02. The published code truncates it at ±2, a
    hundred standard deviations away; this one does not.
    """
    return (KERNEL_INITS | {"pytorch": nn.initializers.normal(0.02)})[preset]


def check_side(image: jax.Array, smallest: int) -> None:
    """Raise a UserError if a side of the images (B, H, W, C) is below `smallest` pixels."""
    if min(image.shape[1:3]) < smallest:
        raise UserError(
            f"data.image_size: got {min(image.shape[1:3])}, this encoder takes at least {smallest}"
        )


def conv(
    features: int, size: int, stride: int = 1, standardise: bool = False, **options: Any
) -> nn.Conv:
    """Return a square convolution without bias, padded by size // 2 on every side.

    Flax's own SAME pads a strided convolution as TensorFlow does, on the bottom and right only.

    Args:
        features: number of output channels.
        size: side of the kernel in pixels.
        stride: stride along both axes.
        standardise: whether to standardise the kernel, see `standardised`.
        **options: further fields of `nn.Conv`.

    Returns:
        The module, (B, H, W, C) -> (B, H / stride, W / stride, features).
    """
    pad = size // 2
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        conv_general_dilated=_standardised(convolve) if standardise else convolve,
        **options,
    )


def patch_conv(features: int, size: int, **options: Any) -> nn.Conv:
    """Return a square convolution with bias whose stride is its size: patches do not overlap."""
    window, none = (size, size), ((0, 0), (0, 0))
    return nn.Conv(
        features, window, window, padding=none, conv_general_dilated=convolve_patches, **options
    )


def depthwise_conv(channels: int, size: int, **options: Any) -> nn.Conv:
    """Return a square depthwise convolution with bias, padded by size // 2 on every side."""
    pad = size // 2
    return nn.Conv(
        channels,
        (size, size),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=channels,
        conv_general_dilated=convolve_depthwise,
        **options,
    )


def linear(
    features: int, inputs: int, preset: str, standardise: bool = False, **options: Any
) -> nn.Dense:
    """Return a linear layer with bias.

    Args:
        features: number of outputs.
        inputs: number of inputs, which the bias's initialisation needs.
        preset: initialisation, one of INITS.
        standardise: whether to standardise the kernel, see `standardised`.
        **options: further fields of `nn.Dense`.

    Returns:
        The module, (..., inputs) -> (..., features).
    """
    return nn.Dense(
        features,
        kernel_init=linear_init(preset),
        bias_init=linear_init(preset, bias_fan_in=inputs),
        dot_general=standardised_product if standardise else None,
        **options,
    )


def standardised(kernel: jax.Array) -> jax.Array:
    """Subtract from each output's weights their mean and divide by their standard deviation.

    Weight standardisation, Qiao et al. 2019 (arXiv 1903.10520), section 3. The kernel is
    (..., outputs). Statistics are float32.
    """
    axes = tuple(range(kernel.ndim - 1))
    k = kernel.astype(jnp.float32)
    k = k - k.mean(axes, keepdims=True)
    return (k * lax.rsqrt(jnp.mean(k**2, axes, keepdims=True) + 1e-10)).astype(kernel.dtype)


def _standardised(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return the product with a standardised kernel; the parameter stays as it is."""
    return lambda x, kernel, *args, **options: product(x, standardised(kernel), *args, **options)


# What `nn.Dense` takes for its product where its kernel is to be standardised.
standardised_product = _standardised(lax.dot_general)


def layer_norm(epsilon: float, **options: Any) -> nn.LayerNorm:
    """Return LayerNorm over the channels of each pixel.

    It computes the variance in two passes, as PyTorch does.
    """
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, **options)


class Norm(nn.Module):
    """Normalisation by name, of (B, ..., C).

    "batch" is BatchNorm and "none" the identity. The others normalise one example over all its
    pixels, as Wu and He 2018 (arXiv 1803.08494, section 3.1) define them: "layer" over all
    channels, "group" over gcd(32, C) groups of channels, "instance" over each channel.
    """

    kind: str  # one of NORMS
    axis_name: str | None = None  # mapped axis over which BatchNorm shares its statistics
    dtype: jnp.dtype = jnp.float32  # of the output
    affine: bool = True  # whether there are parameters "scale" and "bias"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.kind == "none":
            return x
        if self.kind == "batch":
            return BatchNorm(self.axis_name, self.affine, self.dtype, name="batch")(
                x, use_running_average=not train
            )
        channels = x.shape[-1]
        if self.kind == "instance" and x[0].size == channels:
            raise UserError(
                "encoder.norm: got 'instance', takes another where a layer has one pixel: "
                "nothing is left"
            )
        groups = {"layer": 1, "group": math.gcd(32, channels), "instance": channels}[self.kind]
        # Flax computes E x² - (E x)² unless asked for two passes.
        return nn.GroupNorm(
            groups,
            epsilon=1e-5,
            dtype=self.dtype,
            use_bias=self.affine,
            use_scale=self.affine,
            use_fast_variance=False,
            name=self.kind,
        )(x)


@dataclasses.dataclass(frozen=True)
class Style:
    """The choices that all layers of a network share.

    The methods make layers inside a module's `__call__`.
    """

    norm: str = "batch"  # one of NORMS
    activation: str = "relu"  # one of ACTIVATIONS
    standardise: bool = False  # whether kernels are standardised
    preset: str = "pytorch"  # initialisation, one of INITS
    dtype: jnp.dtype = jnp.float32  # of the layers' inputs and outputs; parameters are float32
    axis_name: str | None = None  # mapped axis over which BatchNorm shares its statistics

    def conv(
        self, features: int, size: int, stride: int = 1, *, name: str, stem: bool = False
    ) -> nn.Conv:
        """Return a square convolution without bias in this style, see `conv`.

        Args:
            features: number of output channels.
            size: side of the kernel in pixels.
            stride: stride along both axes.
            name: name of the layer in the parameter tree.
            stem: whether this is the first layer of the CIFAR stem, see `conv_init`.

        Returns:
            The module, (B, H, W, C) -> (B, H / stride, W / stride, features).
        """
        options = {"dtype": self.dtype, "kernel_init": conv_init(self.preset, stem)}
        return conv(features, size, stride, self.standardise, name=name, **options)

    def linear(self, features: int, inputs: int, *, name: str) -> nn.Dense:
        """Return a linear layer with bias in this style.

        Args:
            features: number of outputs.
            inputs: number of inputs.
            name: name of the layer in the parameter tree.

        Returns:
            The module, (..., inputs) -> (..., features).
        """
        return linear(features, inputs, self.preset, self.standardise, dtype=self.dtype, name=name)

    def normalise(self, x: jax.Array, train: bool, *, name: str) -> jax.Array:
        """Apply this style's normalisation.

        Args:
            x: (B, ..., C).
            train: whether BatchNorm uses and records the statistics of this batch.
            name: name of the layer in the parameter tree.

        Returns:
            (B, ..., C).
        """
        return Norm(self.norm, self.axis_name, self.dtype, name=name)(x, train)

    def activate(self, x: jax.Array) -> jax.Array:
        """Apply this style's activation function."""
        return ACTIVATIONS[self.activation](x)
