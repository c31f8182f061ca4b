"""`convolution.cc`: compiled for this machine when it is first needed, kept in the user's cache, called from JAX.

XLA's foreign function interface (https://docs.jax.dev/en/latest/ffi.html) hands over buffers and its own threads. The
calls here are for the CPU backend alone; whoever makes them has asked `available()` and `suits()` first.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from ssl_jax.places import user_cache

SOURCE = Path(__file__).with_name("convolution.cc")
OPTIONS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-march=native")
OUTPUTS = 16  # a multiple of it fills the vectors of every processor


@functools.cache
def available() -> bool:
    """Whether the calls below work in this process: compiles where that has not been done, the first time.

    Without a compiler, or where compiling fails, one line of warning says so. `SSL_JAX_NATIVE=0` asks for False.
    """
    if os.environ.get("SSL_JAX_NATIVE") == "0":
        return False
    try:
        library = ctypes.CDLL(str(compiled(user_cache() / "native")))
    except OSError as error:
        print(f"warning: {error}; convolutions are XLA's own, about half as fast on a CPU", file=sys.stderr)
        return False
    for name in ("correlate", "kernel_gradient"):
        jax.ffi.register_ffi_target(f"ssl_jax_{name}", jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return True


def compiled(folder: Path) -> Path:
    """The library in `folder` that was made of this source for these versions and this processor, made if missing.

    By `$CXX` with `$CXXFLAGS`. Any number of processes may make it at once. OSError says what is wrong in one line.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise OSError("no C++ compiler found (install g++ or clang++, or name one in CXX)")
    command = [compiler, *OPTIONS, *os.environ.get("CXXFLAGS", "").split()]
    made_of = [SOURCE.read_text(), jax.lib.__version__, platform.machine(), processor_features(), *command]
    command += [f"-I{jax.ffi.include_dir()}", str(SOURCE)]
    library = folder / f"convolution-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            partial = Path(scratch) / library.name
            run = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, check=False)
            if run.returncode:
                raise OSError(f"{compiler} could not compile {SOURCE.name}: {(run.stderr.splitlines() or ['?'])[0]}")
            os.replace(partial, library)
    return library


def processor_features() -> str:
    """What instructions this processor has, so that processors may share a directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def suits(outputs: int) -> bool:
    """Whether a convolution's outputs (of a gradient by the input: its inputs) fill whole vectors."""
    return outputs % OUTPUTS == 0


def forward(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """(B, H, W, C), (k, k, C, D) -> (B, H / stride, W / stride, D), padded by k // 2. D suits."""
    batch, height, width, _ = x.shape
    shape = (batch, height // stride, width // stride, kernel.shape[3])
    return _call("correlate", shape)(x, kernel, stride=np.int64(stride), transposed=False)


def input_gradient(gradient: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """From the output's gradient (B, h, w, D) to that of the input, (B, stride h, stride w, C). C suits."""
    batch, height, width, _ = gradient.shape
    shape = (batch, stride * height, stride * width, kernel.shape[2])
    return _call("correlate", shape)(gradient, kernel, stride=np.int64(stride), transposed=True)


def kernel_gradient(x: jax.Array, gradient: jax.Array, size: int, stride: int) -> jax.Array:
    """(B, H, W, C), (B, h, w, D) -> (size, size, C, D). D suits."""
    shape = (size, size, x.shape[3], gradient.shape[3])
    return _call("kernel_gradient", shape)(x, gradient, stride=np.int64(stride))


def _call(name: str, shape: tuple[int, ...]):
    return jax.ffi.ffi_call(f"ssl_jax_{name}", jax.ShapeDtypeStruct(shape, np.float32), vmap_method="sequential")
