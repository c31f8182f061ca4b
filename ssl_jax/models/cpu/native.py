"""`convolution.cc`: compiled for this machine when it is first needed, kept in the user's cache, called from JAX.

XLA's foreign function interface (https://docs.jax.dev/en/latest/ffi.html) hands over buffers and its own threads. The
calls here are for the CPU backend alone; whoever makes them has asked `available()` and `suits()` first.
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
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from ssl_jax.runtime.cache_directory import user_cache

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
        library = loaded(user_cache() / "native")
    except OSError as error:
        print(f"warning: {error}; convolutions are XLA's own, less than half as fast on a CPU", file=sys.stderr)
        return False
    for name in ("correlate", "kernel_gradient"):
        jax.ffi.register_ffi_target(f"ssl_jax_{name}", jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return True


def loaded(folder: Path) -> ctypes.CDLL:
    """The library in `folder` that was made of this source for these versions and this processor, made if missing.

    One that does not load (half of it lost, other system libraries) is made anew. OSError says what is wrong.
    """
    command = [*compiler(), *OPTIONS, *shlex.split(os.environ.get("SSL_JAX_CXXFLAGS", ""))]
    versions = (importlib.metadata.version("jaxlib"), platform.machine(), platform.libc_ver(), processor_features())
    made_of = repr((SOURCE.read_text(), versions, command))
    library = folder / f"convolution-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    if library.exists():
        try:
            return ctypes.CDLL(str(library))
        except OSError:
            pass
    compile_to(library, command)
    return ctypes.CDLL(str(library))


def compiler() -> list[str]:
    """The words of `$CXX`, else the first compiler that is found."""
    words = shlex.split(os.environ.get("CXX", ""))
    names = words[:1] or ["c++", "g++", "clang++"]
    found = next((name for name in names if shutil.which(name)), None)
    if found is None:
        raise OSError(f"no C++ compiler found as {' or '.join(names)} (install g++ or clang++, or name one in CXX)")
    return words or [found]


def compile_to(library: Path, command: list[str]) -> None:
    """Any number of processes may do it at once: whoever is last takes the place of the same."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        partial = Path(scratch) / library.name
        whole = [*command, f"-I{jax.ffi.include_dir()}", str(SOURCE), "-o", str(partial)]
        environment = os.environ | {"LC_ALL": "C"}  # "error" is looked for in what it says
        run = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            said = run.stderr.splitlines() or ["?"]
            cause = next((line for line in said if "error" in line), said[0])
            raise OSError(f"{command[0]} could not compile {SOURCE.name}: {cause}")
        os.replace(partial, library)


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
