"""ResNet-18's convolutions one by one: ours, XLA's and, where it is installed, PyTorch's, value and
both gradients.

    python benchmarks/convolution.py [--quick] [--width N] [--batch N] [--out FILE]

GFLOP/s by the definition's count, float32 on 32x32 images, each layer's contenders in alternation.
"error" is the greatest deviation from float64 on 8 images, as a share of the largest number. On a
CPU alone: elsewhere ours are XLA's. PyTorch's are in channels_last, its faster format here.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import alternate, finish, parse, wait

from ssl_jax.models.cpu import convolution, native

try:
    import torch
except ImportError:
    torch = None

TURN = 0.15  # seconds
PRODUCTS = ("value", "by input", "by kernel")


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
    forms = {
        "ours": functools.partial(
            convolution.convolve,
            strides=(stride,) * 2,
            padding=(pad, pad),
            dimension_numbers=convolution.LAYOUT,
        ),
        "XLA": functools.partial(convolution._xla, stride=stride),
    }
    few = [np.asarray(array) for array in (x[:8], kernel, gradient[:8])]
    errors = {name: deviations(form, forms["XLA"], *few) for name, form in forms.items()}
    sides = {name: products(form, x, kernel, gradient) for name, form in forms.items()}
    if torch:
        sides["PyTorch"] = theirs(x, kernel, gradient, stride)
    rows = []
    # images have no gradient
    for product in PRODUCTS[:: 2 if inputs == 3 else 1]:
        turns = {name: in_a_row(each[product]) for name, each in sides.items()}
        times = alternate({name: turn for name, (turn, _) in turns.items()}, repeats=7)
        rates = {
            name: turns[name][1] * flops / each["median_s"] / 1e9 for name, each in times.items()
        }
        layer = {
            "inputs": inputs,
            "outputs": outputs,
            "side": side,
            "kernel": size,
            "stride": stride,
        }
        wrong = {f"error, {name}": error[product] for name, error in errors.items()}
        rows.append(layer | {"product": product} | rates | wrong | {"seconds": times})
    return rows


def in_a_row(run: Callable) -> tuple[Callable, int]:
    """As many calls as take TURN seconds, and their number: threads of PyTorch's last call wait
    busily, and hold a core, for some milliseconds of the next contender's turn.
    """
    run()
    begin = time.perf_counter()
    run()
    count = max(1, int(TURN / (time.perf_counter() - begin)))
    return lambda: [run() for _ in range(count)], count


def deviations(convolve: Callable, exact: Callable, *arrays: np.ndarray) -> dict[str, float]:
    """How far `convolve` is from `exact` in float64, by product."""

    def compute(form, x, kernel, gradient):
        value, pull = jax.vjp(form, x, kernel)
        return value, *pull(gradient)

    found = jax.jit(functools.partial(compute, convolve))(*arrays)
    with jax.enable_x64(True):
        right = jax.jit(functools.partial(compute, exact))(*map(np.float64, arrays))
        return {
            product: float(np.max(np.abs(np.subtract(a, b))) / np.max(np.abs(b)))
            for product, a, b in zip(PRODUCTS, found, right, strict=True)
        }


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
