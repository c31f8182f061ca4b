"""Calls from JAX to the C++ files here, which are compiled for this machine when first needed.

The compiled library is kept in the user's cache directory, where only this user can change it.
XLA's foreign function interface (https://docs.jax.dev/en/latest/ffi.html) passes buffers and XLA's
own threads. The calls are for the CPU backend alone: `on_cpu` decides whether one is made.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

from ssl_jax.runtime.cache_directory import is_private_file, private_folder
from ssl_jax.runtime.terminal import warn

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("*.cc"))
FUNCTIONS = ("correlate", "kernel_gradient", "moments", "gradient_sums")
OPTIONS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-march=native")
CHANNELS_PER_VECTOR = 16  # a multiple of it fills the vectors of every processor

_portable: ContextVar[bool] = ContextVar("portable", default=False)


@contextmanager
def portable() -> Iterator[None]:
    """Trace XLA's operations alone within this context: the library serves one machine alone."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def on_cpu(own: Callable[..., Any], xla: Callable[..., Any], channels: int) -> Callable[..., Any]:
    """Return a function that is `own` on a CPU where it serves so many channels, else `xla`.

    Where the default device is an accelerator, the CPU computes too little to compile anything for
    it.
    """
    if _portable.get():
        return xla
    if jax.default_backend() == "cpu" and fills_vectors(channels) and available():
        return functools.partial(lax.platform_dependent, cpu=own, default=xla)
    return xla


@functools.cache
def available() -> bool:
    """Return whether the calls below work in this process; compile the library if it is missing.

    If there is no compiler, or compiling fails, print one line of warning. `SSL_JAX_NATIVE=0` makes
    this return False.
    """
    if os.environ.get("SSL_JAX_NATIVE") == "0":
        return False
    try:
        library = load_library(private_folder("native"))
    except OSError as error:
        warn(f"{error}; convolutions and norms are XLA's own, less than half as fast on a CPU")
        return False
    for name in FUNCTIONS:
        jax.ffi.register_ffi_target(
            f"ssl_jax_{name}", jax.ffi.pycapsule(getattr(library, name)), platform="cpu"
        )
    return True


def load_library(folder: Path) -> ctypes.CDLL:
    """Load the library for these sources, these versions and this processor from `folder`.

    It is compiled if it is missing, if another user owns or may write it, and if it does not load
    (a truncated file, other system libraries). An OSError says what is wrong. Take the folder from
    `private_folder`.
    """
    command = [*compiler_command(), *OPTIONS, *words_of("SSL_JAX_CXXFLAGS")]
    versions = (
        importlib.metadata.version("jaxlib"),
        platform.machine(),
        platform.libc_ver(),
        processor_features(),
    )
    texts = [path.read_text() for path in (*SOURCES, *sorted(FOLDER.glob("*.h")))]
    inputs = repr((texts, versions, command))
    library = folder / f"kernels-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}.so"
    if is_private_file(library):
        try:
            return ctypes.CDLL(str(library))
        except OSError:
            pass
    compile_library(library, command)
    return ctypes.CDLL(str(library))


def compiler_command() -> list[str]:
    """Return the words of `$CXX`, else the first compiler found; an OSError if there is none."""
    words = words_of("CXX")
    names = words[:1] or ["c++", "g++", "clang++"]
    found = next((name for name in names if shutil.which(name)), None)
    if found is None:
        raise OSError(
            f"no C++ compiler found as {' or '.join(names)} "
            "(install g++ or clang++, or name one in CXX)"
        )
    return words or [found]


def words_of(variable: str) -> list[str]:
    """Return the words of an environment variable; an OSError if a shell could not split it."""
    text = os.environ.get(variable, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise OSError(f"{variable}: got {text!r}, which a shell cannot split ({error})") from error


def compile_library(library: Path, command: list[str]) -> None:
    """Compile the sources to `library`; an OSError if that fails.

    Any number of processes may do so at once: each replaces the file by an equal one.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        partial = Path(scratch) / library.name
        files = [*map(str, SOURCES), "-o", str(partial)]
        whole = [*command, f"-I{jax.ffi.include_dir()}", *files]
        environment = os.environ | {
            "LC_ALL": "C"
        }  # messages in English, for the search for "error"
        run = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            messages = run.stderr.splitlines() or ["?"]
            cause = next((line for line in messages if "error" in line), messages[0])
            names = " and ".join(path.name for path in SOURCES)
            raise OSError(f"{command[0]} could not compile {names}: {cause}")
        partial.chmod(0o600)
        os.replace(partial, library)


def processor_features() -> str:
    """Return the instruction sets of this processor, so that processors may share a directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def fills_vectors(outputs: int) -> bool:
    """Return whether so many output channels fill whole vectors.

    For the gradient with respect to the input, these are the input channels.
    """
    return outputs % CHANNELS_PER_VECTOR == 0


def forward(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve, padded by k // 2 on all sides.

    Args:
        x: (B, H, W, C) float32.
        kernel: (k, k, C, D) float32; D fills vectors.
        stride: 1 or 2, which divides H and W.

    Returns:
        (B, H / stride, W / stride, D) float32.
    """
    batch, height, width, _ = x.shape
    shape = (batch, height // stride, width // stride, kernel.shape[3])
    return _call("correlate", shape)(x, kernel, stride=np.int64(stride), transposed=False)


def input_gradient(gradient: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Compute the gradient of `forward` with respect to x.

    Args:
        gradient: (B, h, w, D) float32, the gradient with respect to the output.
        kernel: (k, k, C, D) float32; C fills vectors.
        stride: 1 or 2.

    Returns:
        (B, stride h, stride w, C) float32.
    """
    batch, height, width, _ = gradient.shape
    shape = (batch, stride * height, stride * width, kernel.shape[2])
    return _call("correlate", shape)(gradient, kernel, stride=np.int64(stride), transposed=True)


def kernel_gradient(x: jax.Array, gradient: jax.Array, size: int, stride: int) -> jax.Array:
    """Compute the gradient of `forward` with respect to the kernel.

    Args:
        x: (B, H, W, C) float32.
        gradient: (B, h, w, D) float32, the gradient with respect to the output; D fills vectors.
        size: side k of the kernel.
        stride: 1 or 2.

    Returns:
        (size, size, C, D) float32.
    """
    shape = (size, size, x.shape[3], gradient.shape[3])
    return _call("kernel_gradient", shape)(x, gradient, stride=np.int64(stride))


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the mean and the biased variance of each channel.

    Args:
        x: (N, C) float32, of one row or more; C fills vectors.

    Returns:
        (C,) float32 each.
    """
    call = _call("moments", x.shape[1:], x.shape[1:], vmap_method="broadcast_all")
    mean, variance = call(x)
    return mean, variance


def gradient_sums(
    x: jax.Array, gradient: jax.Array, mean: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute the sums over rows of `gradient` and of `gradient` (x - mean).

    Args:
        x: (N, C) float32, of one row or more; C fills vectors.
        gradient: (N, C) float32.
        mean: (C,) float32.

    Returns:
        (C,) float32 each.
    """
    call = _call("gradient_sums", mean.shape, mean.shape, vmap_method="broadcast_all")
    of_gradient, of_product = call(x, gradient, mean)
    return of_gradient, of_product


def _call(
    name: str, *shapes: tuple[int, ...], vmap_method: str = "sequential"
) -> Callable[..., Any]:
    """Return the call of a function of the library whose outputs are float32 of the shapes."""
    outputs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return jax.ffi.ffi_call(
        f"ssl_jax_{name}", outputs if len(outputs) > 1 else outputs[0], vmap_method=vmap_method
    )
