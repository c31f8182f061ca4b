"""The CPU's convolutions against NumPy in float64 and against XLA's own, and what other platforms
compile.

Without a C++ compiler all of it runs on XLA's convolutions, but for the tests marked `native`,
which are skipped.
"""

import functools
import subprocess

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax import lax
from jax.test_util import check_grads
from native_library import check_definition, narrower, needs_native, x86

from ssl_jax.models import layers
from ssl_jax.models.cpu import native
from ssl_jax.models.cpu.convolution import LAYOUT, convolve
from ssl_jax.models.layers import Norm, conv
from ssl_jax.runtime import cache_directory
from ssl_jax.runtime.cache_directory import private_folder

# (batch, height, width, inputs, outputs, kernel size, stride). A kernel's gradient by 4x4 tiles
# takes 32 of them for each thread, and no more than 512.
SHAPES = {
    "2x2 tiles": (3, 8, 10, 64, 48, 3, 1),
    "2x2 tiles, left over": (7, 6, 4, 32, 32, 3, 1),
    "2x2 tiles, one vector": (5, 6, 6, 16, 16, 3, 1),
    "4x4 tiles": (86, 8, 12, 64, 48, 3, 1),
    "4x4 tiles, one image": (1, 4, 4, 32, 64, 3, 1),
    "4x4 tiles, left over": (87, 12, 8, 32, 32, 3, 1),
    "4x4 tiles, many": (9, 32, 32, 64, 64, 3, 1),
    "4x4 tiles, many channels": (515, 4, 4, 32, 288, 3, 1),
    "4x4 tiles, one vector": (257, 4, 8, 16, 16, 3, 1),
    "4x4 tiles, one vector, past the caches": (136, 32, 32, 16, 16, 3, 1),
    "one vector of outputs": (5, 7, 6, 3, 16, 3, 1),
    "two vectors": (3, 5, 7, 17, 32, 3, 1),
    "four vectors": (3, 7, 5, 9, 128, 3, 1),
    "strided": (4, 8, 6, 16, 32, 3, 2),
    "strided, to one pixel": (4, 2, 2, 16, 64, 3, 2),
    "strided, many images": (70, 16, 16, 48, 16, 3, 2),
    "strided, 4x4 tiles": (87, 16, 24, 48, 64, 3, 2),
    "strided, 4x4 tiles, one image": (1, 8, 8, 64, 32, 3, 2),
    "strided, 4x4 tiles, one vector": (257, 8, 16, 16, 16, 3, 2),
    "strided, 4x4 tiles, past the caches": (72, 64, 64, 32, 32, 3, 2),
    "shortcut": (4, 8, 6, 16, 32, 1, 2),
    "1x1": (4, 5, 6, 16, 16, 1, 1),
    "7x7": (3, 12, 8, 3, 64, 7, 2),
    "5x5": (3, 4, 6, 16, 16, 5, 1),
    "5x5, strided": (3, 8, 6, 16, 16, 5, 2),
    "one image": (1, 5, 7, 16, 32, 3, 1),
    "left to XLA": (4, 8, 6, 5, 7, 3, 2),
}


def bound(shape):
    """The largest error, over the largest number: sums of 288 channels by 4x4 tiles have up to
    3.9e-6 in five draws.
    """
    return 3e-6 if max(shape[3:5]) <= 256 else 5e-6


def draw(shape, seed=0):
    batch, height, width, inputs, outputs, size, stride = shape
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, height, width, inputs))
    kernel = rng.normal(size=(size, size, inputs, outputs))
    gradient = rng.normal(size=(batch, height // stride, width // stride, outputs))
    return [np.float32(a) for a in (x, kernel, gradient)]


def ours(x, kernel, stride):
    pad = kernel.shape[0] // 2
    return convolve(x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=LAYOUT)


def patches(x, size, stride):
    """(B, h, w, C, size, size) in float64."""
    pad = size // 2
    padded = np.pad(np.float64(x), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[
        :, ::stride, ::stride
    ]


def by_definition(x, kernel, gradient, stride):
    """Output and both gradients, in float64."""
    size = len(kernel)
    windows = patches(x, size, stride)
    y = np.einsum("bhwcij,ijcd->bhwd", windows, kernel, optimize=True)
    by_kernel = np.einsum("bhwcij,bhwd->ijcd", windows, np.float64(gradient), optimize=True)
    pad, (height, width) = size // 2, gradient.shape[1:3]
    spread = np.zeros((x.shape[0], x.shape[1] + 2 * pad, x.shape[2] + 2 * pad, x.shape[3]))
    for i in range(size):
        for j in range(size):
            rows, columns = (
                slice(k, k + stride * side, stride) for k, side in ((i, height), (j, width))
            )
            spread[:, rows, columns][:, :height, :width] += (
                np.float64(gradient) @ np.float64(kernel[i, j]).T
            )
    return y, spread[:, pad : pad + x.shape[1], pad : pad + x.shape[2]], by_kernel


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_value_and_gradients_by_definition(shape):
    x, kernel, gradient = draw(shape)
    value, pull = jax.vjp(functools.partial(ours, stride=shape[-1]), x, kernel)
    for got, expected in zip(
        (value, *pull(gradient)), by_definition(x, kernel, gradient, shape[-1]), strict=True
    ):
        chex.assert_shape(got, expected.shape)
        assert np.max(np.abs(got - expected)) < bound(shape) * np.max(np.abs(expected))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_value_and_gradients_of_xla(shape):
    x, kernel, gradient = draw(shape, seed=1)
    pad = (shape[-2] // 2,) * 2

    def xla(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (shape[-1],) * 2, (pad, pad), dimension_numbers=LAYOUT
        )

    theirs, their_pull = jax.vjp(xla, x, kernel)
    value, pull = jax.vjp(functools.partial(ours, stride=shape[-1]), x, kernel)
    for got, expected in zip(
        (value, *pull(gradient)), (theirs, *their_pull(gradient)), strict=True
    ):
        atol = 2 * bound(shape) * float(jnp.max(jnp.abs(expected)))  # XLA errs, too
        chex.assert_trees_all_close(got, expected, atol=atol)


@pytest.mark.parametrize("name", ["strided", "shortcut", "left to XLA"])
def test_gradients_by_finite_differences(name):
    x, kernel, _ = draw(SHAPES[name])
    check_grads(
        functools.partial(ours, stride=SHAPES[name][-1]),
        (x, kernel),
        order=1,
        modes=["rev"],
        rtol=1e-2,
    )


@needs_native
def test_it_compiles_and_loads():
    assert native.available()


@needs_native
@pytest.mark.parametrize("name", SHAPES)
def test_what_runs_natively(name):
    """The value and the kernel's gradient where the outputs fill vectors, the input's where the
    inputs do.
    """
    *_, inputs, outputs, _, _ = SHAPES[name]
    text = lowered("cpu", name)
    forward_and_kernel, by_input = (int(count % 16 == 0) for count in (outputs, inputs))
    assert text.count("custom_call @ssl_jax_correlate") == forward_and_kernel + by_input
    assert text.count("custom_call @ssl_jax_kernel_gradient") == forward_and_kernel
    assert text.count("stablehlo.convolution") == 3 - 2 * forward_and_kernel - by_input


@needs_native
@pytest.mark.parametrize("name", ["4x4 tiles, many", "strided, 4x4 tiles, past the caches"])
def test_the_same_bits_each_time(name):
    x, kernel, gradient = draw(SHAPES[name])

    @jax.jit
    def products(x, kernel, gradient):
        value, pull = jax.vjp(functools.partial(ours, stride=SHAPES[name][-1]), x, kernel)
        return value, *pull(gradient)

    first = products(x, kernel, gradient)
    chex.assert_trees_all_equal(products(x, kernel, gradient), first)


def test_no_images():
    x, kernel, gradient = draw((0, 8, 8, 32, 32, 3, 1))
    value, pull = jax.vjp(functools.partial(ours, stride=1), x, kernel)
    chex.assert_trees_all_equal((value, *pull(gradient)), (gradient, x, jnp.zeros_like(kernel)))


@pytest.mark.parametrize("shape", [(2, 8, 8, 32, 0, 3, 1), (2, 8, 8, 0, 32, 3, 1)])
def test_no_channels(shape):
    """XLA's numbers: nothing, or zeros. Natively the division by their number ended the process."""
    x, kernel, gradient = draw(shape)
    value, pull = jax.vjp(functools.partial(ours, stride=1), x, kernel)
    assert value.shape == gradient.shape and not np.any(value)
    chex.assert_trees_all_equal(pull(gradient), (jnp.zeros_like(x), jnp.zeros_like(kernel)))


@needs_native
def test_inside_a_loop_and_on_all_devices_at_once():
    """More convolutions at a time than there are threads: none may wait for another to begin."""
    shape = SHAPES["4x4 tiles, one image"]
    xs, kernel = jnp.stack([draw(shape, seed)[0] for seed in range(12)]), draw(shape)[1]
    expected = jnp.stack([ours(x, kernel, 1) for x in xs])

    def several(xs):
        return lax.map(lambda x: ours(x, kernel, 1), xs), [ours(x, kernel, 1) for x in xs]

    looped, side_by_side = jax.pmap(several)(xs.reshape(4, 3, *xs.shape[1:]))
    chex.assert_trees_all_equal(looped.reshape(expected.shape), expected)
    chex.assert_trees_all_equal(jnp.stack(side_by_side, axis=1).reshape(expected.shape), expected)


@needs_native
@pytest.mark.slow
@x86
@narrower
def test_processors_with_narrower_vectors(flags, tmp_path):
    """The definition holds whatever the vectors' width is, on a processor that has them all."""
    check_definition(__file__, len(SHAPES), flags, tmp_path)


BROKEN = {
    "no compiler": ({"PATH": "", "CXX": ""}, "no C++ compiler found as c++ or g++ or clang++ ("),
    "not the compiler that is named": ({"CXX": "g+-"}, "no C++ compiler found as g+- ("),
    "a compiler that fails": (
        {"CXX": "false"},
        "could not compile batch_norm.cc and convolution.cc: ?",
    ),
    "flags that it does not know": (
        {"SSL_JAX_CXXFLAGS": "-march=abacus"},
        "could not compile batch_norm.cc and convolution.cc: ",
    ),
    "flags that a shell cannot split": (
        {"SSL_JAX_CXXFLAGS": '-O3 "-march'},
        """got '-O3 "-march', which a shell cannot split (No closing quotation)""",
    ),
    "a compiler that a shell cannot split": ({"CXX": "g++ '"}, 'CXX: got "g++ \'"'),
    "a mistake in the source": ({"SSL_JAX_CXXFLAGS": "-Dkernel_gradient=3"}, " error: "),
}


@pytest.mark.parametrize("environment, message", BROKEN.values(), ids=BROKEN)
def test_without_it_one_line_says_so(environment, message, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not native.available.__wrapped__()
    error = capfd.readouterr().err
    assert error.startswith("warning: ") and message in error and error.count("\n") == 1, error
    assert not list(tmp_path.glob("native/*")), "nothing half made is left"


@pytest.fixture
def quick_to_compile(tmp_path, monkeypatch):
    """A library of one line, in place of ours."""
    source = tmp_path / "source.cc"
    source.write_text('extern "C" int correlate() { return 0; }\n')
    monkeypatch.setattr(native, "SOURCES", [source])


@needs_native
def test_a_library_that_does_not_load_is_made_anew(tmp_path, quick_to_compile):
    native.load_library(tmp_path / "whole")
    (whole,) = (tmp_path / "whole").iterdir()
    (tmp_path / "broken").mkdir()
    broken = tmp_path / "broken" / whole.name
    broken.write_bytes(b"no library")
    assert (
        native.load_library(tmp_path / "broken").correlate
        and broken.stat().st_size == whole.stat().st_size
    )


@needs_native
@pytest.mark.parametrize("planted", ["in a folder of all", "as a file of all", "as a link"])
def test_a_library_that_others_can_write_is_not_executed(
    planted, tmp_path, monkeypatch, capfd, quick_to_compile
):
    """The planted library leaves a file when it is loaded."""
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "cache"))
    cache_directory._warn.cache_clear()
    native.load_library(tmp_path / "model")
    (model,) = (tmp_path / "model").iterdir()
    source, marker = tmp_path / "planted.cc", tmp_path / "executed"
    source.write_text(
        "#include <cstdio>\n#include <cstdlib>\n"
        "__attribute__((constructor)) static void run() {\n"
        f'  if (FILE *file = std::fopen("{marker}", "w")) std::fclose(file);\n}}\n'
        'extern "C" int correlate; int correlate;\n'
    )
    folder = tmp_path / "cache" / "native"
    folder.mkdir(parents=True, mode=0o700)
    library = folder / model.name
    built = tmp_path / "planted.so" if planted == "as a link" else library
    command = [*native.compiler_command(), "-shared", "-fPIC", str(source), "-o", str(built)]
    subprocess.run(command, check=True)
    built.chmod(0o666 if planted == "as a file of all" else 0o600)
    if planted == "as a link":
        library.symlink_to(built)
    if planted == "in a folder of all":
        folder.parent.chmod(0o1777)
    assert native.load_library(private_folder("native"))
    assert not marker.exists()
    if planted == "in a folder of all":
        assert capfd.readouterr().err.count("\n") == 1
    else:
        assert library.read_bytes() == model.read_bytes() and not library.is_symlink()
        assert library.stat().st_mode & 0o777 == 0o600


@needs_native
def test_without_a_cache_it_is_made_elsewhere(tmp_path, monkeypatch, capfd, quick_to_compile):
    in_its_place = tmp_path / "file"
    in_its_place.touch()
    monkeypatch.setenv("SSL_JAX_CACHE", str(in_its_place))
    cache_directory._warn.cache_clear()
    assert native.load_library(private_folder("native"))
    error = capfd.readouterr().err
    assert error.startswith(f"warning: {in_its_place}") and error.count("\n") == 1, error


@pytest.mark.parametrize("name", ["4x4 tiles", "strided"])
def test_xla_takes_its_place(name, monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    assert lowered("cpu", name).count("stablehlo.convolution") == 3
    test_value_and_gradients_by_definition(SHAPES[name])


def test_switched_off(monkeypatch, capfd):
    monkeypatch.setenv("SSL_JAX_NATIVE", "0")
    assert not native.available.__wrapped__() and not capfd.readouterr().err


ODD = {
    "bfloat16": (jnp.bfloat16, (1, 1), ((1, 1), (1, 1)), {}),
    "no padding": (jnp.float32, (1, 1), ((0, 0), (0, 0)), {}),
    "stride that does not divide": (jnp.float32, (2, 2), ((1, 1), (1, 1)), {}),
    "another stride": (jnp.float32, (3, 3), ((1, 1), (1, 1)), {}),
    "dilated": (jnp.float32, (1, 1), ((1, 1), (1, 1)), {"rhs_dilation": (2, 2)}),
    "precision asked for": (jnp.float32, (1, 1), ((1, 1), (1, 1)), {"precision": "highest"}),
}


@pytest.mark.parametrize("dtype, strides, padding, options", ODD.values(), ids=ODD)
def test_anything_else_is_left_to_xla(dtype, strides, padding, options):
    x, kernel = (jnp.asarray(a, dtype) for a in draw((2, 7, 7, 3, 4, 3, 1))[:2])
    options |= {"dimension_numbers": LAYOUT}
    traced = jax.make_jaxpr(lambda x, k: convolve(x, k, strides, padding, **options))(x, kernel)
    assert [e.primitive.name for e in traced.eqns] == ["conv_general_dilated"]
    got = convolve(x, kernel, strides, padding, **options)
    chex.assert_trees_all_equal(
        got, lax.conv_general_dilated(x, kernel, strides, padding, **options)
    )


def lowered(platform, name):
    x, kernel, _ = draw(SHAPES[name])
    pull = jax.grad(lambda x, k: jnp.sum(jnp.sin(ours(x, k, SHAPES[name][-1]))), (0, 1))
    return jax.jit(pull).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", ["4x4 tiles", "strided"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_compile_xla(platform, name):
    text = lowered(platform, name)
    assert text.count("stablehlo.convolution") == 3 and "ssl_jax" not in text


def test_several_kernels_at_once():
    x, kernel, _ = draw(SHAPES["strided"])
    kernels = jnp.stack([kernel, 2 * kernel])

    def loss(kernel):
        return jnp.mean(ours(x, kernel, 2) ** 2)

    got = jax.vmap(jax.grad(loss))(kernels)
    expected = jnp.stack([jax.grad(loss)(k) for k in kernels])
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


class Wide(nn.Module):
    """The value in every form, at small shapes that call for it."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        for i, (features, size, stride) in enumerate(
            [(64, 3, 1), (64, 3, 1), (32, 3, 2), (16, 3, 2), (16, 1, 2)]
        ):
            x = conv(features, size, stride, kernel_init=layers.he_fan_out, name=f"conv{i}")(x)
            x = nn.relu(Norm("batch", self.axis_name, name=f"norm{i}")(x, train))
        return jnp.mean(x, axis=(1, 2))


def curve(monkeypatch, convolution, steps=20):
    """The losses of a short training from the same start, and its last parameters."""
    monkeypatch.setattr(layers, "convolve", convolution)
    parts = tiny.make_parts(kind="mlp", encoder=Wide(), rate=0.002)
    state = jax.jit(lambda key: tiny.fresh_state(parts, key))(jax.random.key(1))
    step = jax.jit(tiny.make_step(parts))
    losses = []
    for i in range(steps):
        state, metrics = step(state, tiny.make_batch(i), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    return losses, state.params


def one_rounding_apart(frequency):
    """XLA's convolution, its outputs changed by a float32's last few bits."""

    def convolution(x, kernel, *args, **options):
        y = lax.conv_general_dilated(x, kernel, *args, **options)
        return y * (1 + 4e-7 * jnp.sin(frequency * lax.stop_gradient(y)))

    return convolution


def farthest(one, other):
    """The largest difference of a leaf."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(a - b))) for a, b in pairs)


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.slow
def test_training_is_the_same(monkeypatch, steps):
    """As near to XLA's as XLA's is to itself when its outputs are rounded otherwise.

    BatchNorm amplifies that, by factors that differ from rounding to rounding: hence three.
    """
    expected, ours, *controls = (
        curve(monkeypatch, convolution, steps)
        for convolution in (
            lax.conv_general_dilated,
            convolve,
            *(one_rounding_apart(frequency) for frequency in (333, 777, 2000)),
        )
    )
    for part in (0, 1):  # losses, parameters
        apart = farthest(ours[part], expected[part])
        allowed = max(farthest(control[part], expected[part]) for control in controls)
        assert apart < 4 * allowed and (steps > 1 or allowed < 1e-5), (apart, allowed)
