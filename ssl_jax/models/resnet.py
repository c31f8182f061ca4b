"""ResNet-18/34/50 (He et al. 2016, arXiv 1512.03385) down to the global average pool.

Stems: "cifar" (3x3, stride 1, no pooling: the replication's choice for 32x32 images) and "imagenet" (7x7,
stride 2, 3x3 max-pool). Input (B, H, W, C) float, output (B, features) float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.models.layers import Norm, conv, conv_init


class BasicBlock(nn.Module):
    """3x3 -> 3x3 with a shortcut, projected by 1x1 where the shape changes."""

    width: int
    stride: int
    norm: str
    preset: str
    dtype: jnp.dtype
    axis_name: str | None
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        options = {"dtype": self.dtype, "kernel_init": conv_init(self.preset)}
        y = conv(self.width, 3, self.stride, name="conv1", **options)(x)
        y = nn.relu(Norm(self.norm, self.axis_name, self.dtype, name="norm1")(y, train))
        y = conv(self.width, 3, name="conv2", **options)(y)
        y = Norm(self.norm, self.axis_name, self.dtype, name="norm2")(y, train)
        if x.shape != y.shape:
            x = conv(self.width, 1, self.stride, name="shortcut_conv", **options)(x)
            x = Norm(self.norm, self.axis_name, self.dtype, name="shortcut_norm")(x, train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1 -> 3x3 -> 1x1 (four times as wide); the stride is on the 3x3, as torchvision has it."""

    width: int
    stride: int
    norm: str
    preset: str
    dtype: jnp.dtype
    axis_name: str | None
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        options = {"dtype": self.dtype, "kernel_init": conv_init(self.preset)}
        y = x
        for i, (factor, size, stride) in enumerate([(1, 1, 1), (1, 3, self.stride), (4, 1, 1)], start=1):
            y = conv(factor * self.width, size, stride, name=f"conv{i}", **options)(y)
            y = Norm(self.norm, self.axis_name, self.dtype, name=f"norm{i}")(y, train)
            y = nn.relu(y) if i < 3 else y
        if x.shape != y.shape:
            x = conv(4 * self.width, 1, self.stride, name="shortcut_conv", **options)(x)
            x = Norm(self.norm, self.axis_name, self.dtype, name="shortcut_norm")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stem, four stages of blocks at width, 2, 4 and 8 times width, global average pool."""

    depths: tuple[int, ...]
    block: type[nn.Module]
    width: int = 64
    stem: str = "cifar"
    norm: str = "batch"
    preset: str = "pytorch"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size, stride = {"cifar": (3, 1), "imagenet": (7, 2)}[self.stem]
        replaced = self.stem == "cifar"
        x = conv(
            self.width,
            size,
            stride,
            dtype=self.dtype,
            kernel_init=conv_init(self.preset, replaced),
            name="stem_conv",
        )(x)
        x = nn.relu(Norm(self.norm, self.axis_name, self.dtype, name="stem_norm")(x, train))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])  # pyright: ignore[reportArgumentType]
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                x = self.block(  # pyright: ignore[reportCallIssue]
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    norm=self.norm,
                    preset=self.preset,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"stage{stage + 1}_block{i + 1}",
                )(x, train)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
