"""ResNet-18's convolutions one by one: ours, XLA's and, where it is installed, PyTorch's, value and
both gradients.

    python benchmarks/convolution.py [--quick] [--width N] [--batch N] [--out FILE]

GFLOP/s by the definition's count, float32 on 32x32 images, each layer's contenders in alternation.
On a CPU alone: elsewhere ours are XLA's. PyTorch's are in channels_last, its faster format here.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from common import alternate, finish, parse, wait

from ssl_jax.models.cpu import convolution, native

try:
    import torch
except ImportError:
    torch = None


def main() -> None:
    args = parse(__doc__, width=0, batch=128)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        widths = [args.width] if args.width else [16] if args.quick else [64, 16]
        rows = [
            row
            for width in widths
            for layer in layers(width)
            for row in measure(args.batch, *layer)
        ]
    finish(args, "convolution", rows, native=native.available())


def layers(width: int) -> list[tuple[int, int, int, int, int]]:
    """(inputs, outputs, side of the input, kernel, stride) of every kind of layer."""
    found = [(3, width, 32, 3, 1), (width, width, 32, 3, 1)]
    for stage in range(1, 4):
        inputs, side = width * 2 ** (stage - 1), 64 // 2**stage
        found += [(inputs, 2 * inputs, side, size, 2) for size in (3, 1)]
        found.append((2 * inputs, 2 * inputs, side // 2, 3, 1))
    return found


def measure(batch: int, inputs: int, outputs: int, side: int, size: int, stride: int) -> list[dict]:
    """A row for each of the three products."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, side, side, inputs))
    kernel = jax.random.normal(keys[1], (size, size, inputs, outputs))
    gradient = jax.random.normal(keys[2], (batch, side // stride, side // stride, outputs))
    flops = 2 * gradient.size * inputs * size**2
    pad = (size // 2,) * 2
    ours = functools.partial(convolution.convolve, strides=(stride,) * 2, padding=(pad, pad))
    sides = {
        "ours": products(
            functools.partial(ours, dimension_numbers=convolution.LAYOUT), x, kernel, gradient
        ),
        "XLA": products(functools.partial(convolution._xla, stride=stride), x, kernel, gradient),
    }
    if torch:
        sides["PyTorch"] = theirs(x, kernel, gradient, stride)
    rows = []
    # images have no gradient
    for product in ("value", "by input", "by kernel")[:: 2 if inputs == 3 else 1]:
        times = alternate(
            {name: each[product] for name, each in sides.items()}, repeats=7, warmup=2
        )
        rates = {name: flops / time["median_s"] / 1e9 for name, time in times.items()}
        layer = {
            "inputs": inputs,
            "outputs": outputs,
            "side": side,
            "kernel": size,
            "stride": stride,
        }
        rows.append(layer | {"product": product} | rates | {"seconds": times})
    return rows


def products(
    convolve: Callable, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> dict[str, Callable]:
    """The value and each gradient, compiled by themselves."""

    def pull(place, x, kernel, gradient):
        return jax.vjp(convolve, x, kernel)[1](gradient)[place]

    value, by_input, by_kernel = (
        jax.jit(convolve),
        *(jax.jit(functools.partial(pull, place)) for place in (0, 1)),
    )
    return {
        "value": lambda: wait(value(x, kernel)),
        "by input": lambda: wait(by_input(x, kernel, gradient)),
        "by kernel": lambda: wait(by_kernel(x, kernel, gradient)),
    }


def theirs(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, stride: int
) -> dict[str, Callable]:
    def tensor(array: jax.Array, *axes: int) -> Any:
        return torch.tensor(jax.device_get(jnp.transpose(array, axes))).to(
            memory_format=torch.channels_last
        )

    x, gradient, kernel = (
        tensor(x, 0, 3, 1, 2),
        tensor(gradient, 0, 3, 1, 2),
        tensor(kernel, 3, 2, 0, 1),
    )
    pad = kernel.shape[-1] // 2

    def backward(*wanted: bool):
        arguments = (None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, [*wanted, False])
        return torch.ops.aten.convolution_backward(gradient, x, kernel, *arguments)

    return {
        "value": lambda: torch.nn.functional.conv2d(x, kernel, stride=stride, padding=pad),
        "by input": lambda: backward(True, False),
        "by kernel": lambda: backward(False, True),
    }


if __name__ == "__main__":
    main()
