"""ResNet-18/34/50 (He et al. 2016, arXiv 1512.03385) down to the global average pool.

Stems: "cifar" (3x3, stride 1, no pooling: the replication's choice for 32x32 images) and "imagenet"
(7x7, stride 2, 3x3 max-pool). Without `residual` the layers are the same and the shortcuts are left
out. Input (B, H, W, C) float, output (B, features) float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.models.layers import Style


class BasicBlock(nn.Module):
    """3x3 -> 3x3 with a shortcut, which a 1x1 convolution projects where the shape changes."""

    width: int
    stride: int
    residual: bool
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        style = self.style
        y = style.conv(self.width, 3, self.stride, name="conv1")(x)
        y = style.activate(style.normalise(y, train, name="norm1"))
        y = style.conv(self.width, 3, name="conv2")(y)
        y = style.normalise(y, train, name="norm2")
        return style.activate(y + _shortcut(self, x, y.shape, train) if self.residual else y)


class Bottleneck(nn.Module):
    """1x1 -> 3x3 -> 1x1 with four times the channels; the 3x3 has the stride, as in torchvision."""

    width: int
    stride: int
    residual: bool
    style: Style

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        style = self.style
        y = x
        for i, (factor, size, stride) in enumerate(
            [(1, 1, 1), (1, 3, self.stride), (4, 1, 1)], start=1
        ):
            y = style.conv(factor * self.width, size, stride, name=f"conv{i}")(y)
            y = style.normalise(y, train, name=f"norm{i}")
            y = style.activate(y) if i < 3 else y
        return style.activate(y + _shortcut(self, x, y.shape, train) if self.residual else y)


def _shortcut(
    block: BasicBlock | Bottleneck, x: jax.Array, shape: tuple[int, ...], train: bool
) -> jax.Array:
    """Return x, projected by a 1x1 convolution where its shape is another."""
    if x.shape == shape:
        return x
    x = block.style.conv(shape[-1], 1, block.stride, name="shortcut_conv")(x)
    return block.style.normalise(x, train, name="shortcut_norm")


class ResNet(nn.Module):
    """Stem, four stages of blocks at width, 2, 4 and 8 times width, global average pool."""

    depths: tuple[int, ...]  # blocks per stage
    block: type[nn.Module]  # BasicBlock or Bottleneck
    width: int = 64  # channels of the stem
    stem: str = "cifar"  # or "imagenet"
    residual: bool = True  # whether there are shortcuts
    style: Style = Style()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size, stride = {"cifar": (3, 1), "imagenet": (7, 2)}[self.stem]
        x = self.style.conv(self.width, size, stride, name="stem_conv", stem=self.stem == "cifar")(
            x
        )
        x = self.style.activate(self.style.normalise(x, train, name="stem_norm"))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])  # pyright: ignore[reportArgumentType]
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                x = self.block(  # pyright: ignore[reportCallIssue]
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    residual=self.residual,
                    style=self.style,
                    name=f"stage{stage + 1}_block{i + 1}",
                )(x, train)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))
