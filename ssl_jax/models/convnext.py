"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) down to the normalised global average.

Constants (eps 1e-6, layer scale 1e-6, exact GELU) are those of the published code and of timm.
Stochastic depth is left out. Input (B, H, W, C) float with sides of at least 32 pixels, output
(B, 8 width) float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.models.layers import (
    ACTIVATIONS,
    check_side,
    depthwise_conv,
    layer_norm,
    patch_conv,
    transformer_init,
)

EPSILON = 1e-6


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor that starts at 1e-6.

    Touvron et al. 2021 (arXiv 2103.17239), section 2.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (x.shape[-1],))
        return x * gamma.astype(self.dtype)[None, None, None]


class Block(nn.Module):
    """x + scale(linear2(gelu(linear1(norm(depthwise 7x7(x)))))): figure 4.

    The hidden layer has four times the channels.
    """

    preset: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        options = {"dtype": self.dtype, "kernel_init": transformer_init(self.preset)}
        y = depthwise_conv(channels, 7, name="depthwise", **options)(x)
        y = layer_norm(EPSILON, dtype=self.dtype, name="norm")(y)
        y = ACTIVATIONS["gelu"](nn.Dense(4 * channels, name="linear1", **options)(y))
        y = nn.Dense(channels, name="linear2", **options)(y)
        return x + LayerScale(self.dtype, name="scale")(y)


class ConvNeXt(nn.Module):
    """Patches of 4x4, four stages of blocks at width, 2, 4 and 8 times width, average, norm."""

    depths: tuple[int, ...]  # blocks per stage
    width: int = 96  # channels of the first stage
    preset: str = "pytorch"  # initialisation, one of layers.INITS
    dtype: jnp.dtype = jnp.float32  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        check_side(x, 32)
        options = {"dtype": self.dtype, "kernel_init": transformer_init(self.preset)}
        x = patch_conv(self.width, 4, name="stem_conv", **options)(x)
        x = layer_norm(EPSILON, dtype=self.dtype, name="stem_norm")(x)
        for stage, depth in enumerate(self.depths, start=1):
            if stage > 1:
                x = layer_norm(EPSILON, dtype=self.dtype, name=f"stage{stage}_norm")(x)
                x = patch_conv(
                    self.width * 2 ** (stage - 1), 2, name=f"stage{stage}_conv", **options
                )(x)
            for i in range(1, depth + 1):
                x = Block(self.preset, self.dtype, name=f"stage{stage}_block{i}")(x)
        return layer_norm(EPSILON, name="norm")(jnp.mean(x.astype(jnp.float32), axis=(1, 2)))
