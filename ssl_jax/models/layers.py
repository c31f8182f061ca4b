"""What the networks share: initialisation presets, convolution with PyTorch's padding, normalisation.

Presets: "pytorch" (the original authors' code: convolutions He-normal by fan-out, linear layers uniform in
±1/sqrt(fan_in)) and "glorot" (the replication's Keras defaults: Glorot-uniform kernels, zero biases).
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.models.convolution import convolve

# U(±1/sqrt(fan_in)), PyTorch's default for Linear and Conv2d, has variance 1 / (3 fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
glorot = nn.initializers.glorot_uniform()


def _uniform(bound: float) -> Callable:
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv_init(preset: str, stem: bool = False) -> Callable:
    """Kernel initialiser of a convolution. The original's CIFAR stem, swapped in late, keeps torch's default."""
    return {"pytorch": torch_uniform if stem else he_fan_out, "glorot": glorot}[preset]


def linear_init(preset: str, bias_fan_in: int | None = None) -> Callable:
    """Initialiser of a linear layer's kernel, or of its bias when `bias_fan_in` gives its number of inputs."""
    if bias_fan_in is None:
        return {"pytorch": torch_uniform, "glorot": glorot}[preset]
    return {"pytorch": _uniform(1 / math.sqrt(bias_fan_in)), "glorot": nn.initializers.zeros}[preset]


def conv(features: int, size: int, stride: int = 1, **options) -> nn.Conv:
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
        conv_general_dilated=convolve,
        **options,
    )


def batch_norm(axis_name: str | None, affine: bool = True, **options) -> nn.BatchNorm:
    """BatchNorm with PyTorch's constants (eps 1e-5, running statistics keep 0.9), synchronised over `axis_name`."""
    return nn.BatchNorm(momentum=0.9, epsilon=1e-5, use_scale=affine, use_bias=affine, axis_name=axis_name, **options)


class Norm(nn.Module):
    """The encoder's normalisation by name: "batch", "group" (32 channels a group where they divide) or "none"."""

    kind: str
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.kind == "none":
            return x
        if self.kind == "group":
            groups = math.gcd(32, x.shape[-1])
            return nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=self.dtype, name="group")(x)
        return batch_norm(self.axis_name, dtype=self.dtype, name="batch")(x, use_running_average=not train)
