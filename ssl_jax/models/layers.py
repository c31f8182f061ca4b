"""What the networks share: activations, initialisations, normalisations by name, and layers in one style.

Initialisations (`INITS`): "pytorch" (the original authors' code: convolutions He-normal by fan-out, linear layers
uniform in ±1/sqrt(fan_in), biases too), "glorot" (the replication's Keras defaults: Glorot-uniform kernels),
"gaussian" (normal, standard deviation 0.01), "he" (normal, variance 2 / fan_in; He et al. 2015, arXiv 1502.01852,
equation 10) and "orthogonal" (Saxe et al. 2014, arXiv 1312.6120). Biases are zero in all but the first.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.errors import UserError
from ssl_jax.models.batch_norm import BatchNorm
from ssl_jax.models.cpu.convolution import convolve, convolve_channels, convolve_patches

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "gelu": functools.partial(nn.gelu, approximate=False),
}
NORMS = ("batch", "layer", "group", "instance", "none")

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


def _uniform(bound: float) -> Callable:
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv_init(preset: str, stem: bool = False) -> Callable:
    """Kernel initialiser of a convolution. The original's CIFAR stem, swapped in late, keeps torch's default."""
    return (KERNEL_INITS | {"pytorch": torch_uniform if stem else he_fan_out})[preset]


def linear_init(preset: str, bias_fan_in: int | None = None) -> Callable:
    """Initialiser of a linear layer's kernel, or of its bias when `bias_fan_in` gives its number of inputs."""
    if bias_fan_in is None:
        return (KERNEL_INITS | {"pytorch": torch_uniform})[preset]
    return _uniform(1 / math.sqrt(bias_fan_in)) if preset == "pytorch" else nn.initializers.zeros


def transformer_init(preset: str) -> Callable:
    """Kernel initialiser in ConvNeXt and Swin, whose "pytorch" is normal with standard deviation 0.02.

    Their code truncates it at ±2, a hundred standard deviations away.
    """
    return (KERNEL_INITS | {"pytorch": nn.initializers.normal(0.02)})[preset]


def check_side(image: jax.Array, smallest: int) -> None:
    """UserError for images that a network's strides would leave nothing of."""
    if min(image.shape[1:3]) < smallest:
        raise UserError(f"data.image_size: got {min(image.shape[1:3])}, this encoder takes at least {smallest}")


def conv(features: int, size: int, stride: int = 1, standardise: bool = False, **options) -> nn.Conv:
    """Square convolution without bias, padded by size // 2 on every side.

    Flax's own SAME pads a strided convolution as TensorFlow does, on the bottom and right only.
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


def patch_conv(features: int, size: int, **options) -> nn.Conv:
    """Square convolution with bias over patches that do not overlap."""
    window, none = (size, size), ((0, 0), (0, 0))
    return nn.Conv(features, window, window, padding=none, conv_general_dilated=convolve_patches, **options)


def depthwise_conv(channels: int, size: int, **options) -> nn.Conv:
    """Square convolution with bias of each channel by itself, padded by size // 2 on every side."""
    pad = size // 2
    return nn.Conv(
        channels,
        (size, size),
        padding=((pad, pad), (pad, pad)),
        feature_group_count=channels,
        conv_general_dilated=convolve_channels,
        **options,
    )


def linear(features: int, inputs: int, preset: str, standardise: bool = False, **options) -> nn.Dense:
    """Linear layer with bias, from so many inputs."""
    return nn.Dense(
        features,
        kernel_init=linear_init(preset),
        bias_init=linear_init(preset, bias_fan_in=inputs),
        dot_general=_standardised(lax.dot_general) if standardise else None,
        **options,
    )


def standardised(kernel: jax.Array) -> jax.Array:
    """Weight standardisation: each output's weights minus their mean, over their standard deviation.

    Qiao et al. 2019 (arXiv 1903.10520), section 3. kernel: (..., outputs); statistics in float32.
    """
    axes = tuple(range(kernel.ndim - 1))
    k = kernel.astype(jnp.float32)
    k = k - k.mean(axes, keepdims=True)
    return (k * lax.rsqrt(jnp.mean(k**2, axes, keepdims=True) + 1e-10)).astype(kernel.dtype)


def _standardised(product: Callable) -> Callable:
    """The convolution or product with a standardised kernel: the parameter itself stays as it is."""
    return lambda x, kernel, *args, **options: product(x, standardised(kernel), *args, **options)


def layer_norm(epsilon: float, **options) -> nn.LayerNorm:
    """LayerNorm over the channels of each pixel; the variance in two passes, as PyTorch computes it."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, **options)


class Norm(nn.Module):
    """Normalisation by name, of (B, ..., C).

    "batch"; over one example and all its pixels "layer" (all channels), "group" (32 groups of channels where they
    divide) and "instance" (each channel), as Wu and He 2018 (arXiv 1803.08494, section 3.1) define them; "none".
    """

    kind: str
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.kind == "none":
            return x
        if self.kind == "batch":
            return BatchNorm(self.axis_name, dtype=self.dtype, name="batch")(x, use_running_average=not train)
        channels = x.shape[-1]
        if self.kind == "instance" and x[0].size == channels:
            raise UserError("encoder.norm: got 'instance', takes another where a layer has one pixel: nothing is left")
        groups = {"layer": 1, "group": math.gcd(32, channels), "instance": channels}[self.kind]
        return nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=self.dtype, name=self.kind)(x)


@dataclasses.dataclass(frozen=True)
class Style:
    """The choices that all layers of a network share; its methods make layers inside a module's `__call__`."""

    norm: str = "batch"
    activation: str = "relu"
    standardise: bool = False
    preset: str = "pytorch"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    def conv(self, features: int, size: int, stride: int = 1, *, name: str, stem: bool = False) -> nn.Conv:
        options = {"dtype": self.dtype, "kernel_init": conv_init(self.preset, stem)}
        return conv(features, size, stride, self.standardise, name=name, **options)

    def linear(self, features: int, inputs: int, *, name: str) -> nn.Dense:
        return linear(features, inputs, self.preset, self.standardise, dtype=self.dtype, name=name)

    def normalise(self, x: jax.Array, train: bool, *, name: str) -> jax.Array:
        return Norm(self.norm, self.axis_name, self.dtype, name=name)(x, train)

    def activate(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.activation](x)
