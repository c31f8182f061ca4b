"""Calls from JAX to `convolution.cc`, which is compiled for this machine when it is first needed.

The compiled library is kept in the user's cache directory, where only this user can change it.
XLA's foreign function interface (https://docs.jax.dev/en/latest/ffi.html) passes buffers and XLA's
own threads. The calls are for the CPU backend alone. Check `available()` and `fills_vectors()`
before a call.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssl_jax.runtime.cache_directory import is_private_file, private_folder
from ssl_jax.runtime.terminal import warn

SOURCE = Path(__file__).with_name("convolution.cc")
OPTIONS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-march=native")
CHANNELS_PER_VECTOR = 16  # a multiple of it fills the vectors of every processor


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
        warn(f"{error}; convolutions are XLA's own, less than half as fast on a CPU")
        return False
    for name in ("correlate", "kernel_gradient"):
        jax.ffi.register_ffi_target(
            f"ssl_jax_{name}", jax.ffi.pycapsule(getattr(library, name)), platform="cpu"
        )
    return True


def load_library(folder: Path) -> ctypes.CDLL:
    """Load the library for this source, these versions and this processor from `folder`.

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
    inputs = repr((SOURCE.read_text(), versions, command))
    library = folder / f"convolution-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}.so"
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
    """Compile the source to `library`; an OSError if that fails.

    Any number of processes may do so at once: each replaces the file by an equal one.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        partial = Path(scratch) / library.name
        whole = [*command, f"-I{jax.ffi.include_dir()}", str(SOURCE), "-o", str(partial)]
        environment = os.environ | {
            "LC_ALL": "C"
        }  # messages in English, for the search for "error"
        run = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            messages = run.stderr.splitlines() or ["?"]
            cause = next((line for line in messages if "error" in line), messages[0])
            raise OSError(f"{command[0]} could not compile {SOURCE.name}: {cause}")
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


def _call(name: str, shape: tuple[int, ...]) -> Callable[..., Any]:
    """Return the call of a function of the library whose output is float32 of `shape`."""
    return jax.ffi.ffi_call(
        f"ssl_jax_{name}", jax.ShapeDtypeStruct(shape, np.float32), vmap_method="sequential"
    )
