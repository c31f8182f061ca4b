"""The memory of a process: glibc's settings, and whether they are worth a new start."""

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ssl_jax.errors import UserError
from ssl_jax.runtime import stops

KEEP_MEMORY = ("hugetlb=1", "mmap_max=0", "trim_threshold=100000000000", "arena_max=1")
# Files that a driver makes for its accelerators: NVIDIA (the last one under Windows), AMD, TPU.
DEVICES = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")
PLUGINS = ("jax_plugins", "libtpu")  # packages by which JAX reaches an accelerator


def use_huge_pages() -> None:
    """Start this process anew, with glibc's memory kept in huge pages, where a CPU trains.

    XLA asks for a step's memory anew at every step; by default the CPU gets it as zeroed pages of 4
    KiB each time. glibc reads these settings only when a process starts. Whoever sets
    GLIBC_TUNABLES, to "" too, decides.
    """
    if (
        sys.platform == "linux"
        and "GLIBC_TUNABLES" not in os.environ
        and not accelerator_expected()
    ):
        os.environ["GLIBC_TUNABLES"] = ":".join(
            f"glibc.malloc.{setting}" for setting in KEEP_MEMORY
        )
        stops.block()
        try:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        finally:  # where there is no new start
            stops.unblock()


def accelerator_expected() -> bool:
    """Return whether JAX will find an accelerator, in a millisecond, without importing JAX.

    JAX_PLATFORMS decides, of which JAX takes the first. Where it says nothing, an accelerator takes
    a device that is not hidden and a package that reaches it. A wrong answer costs speed alone.
    """
    platforms = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME") or ""
    if platforms:
        return platforms.split(",")[0].strip().lower() != "cpu"
    devices = [device for pattern in DEVICES for device in glob(pattern)]
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        devices = [
            device for device in devices if not device.startswith(("/dev/nvidia", "/dev/dxg"))
        ]
    return bool(devices) and any(find_spec(package) for package in PLUGINS)


# Files with the memory that a container may use, in bytes.
CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# Fields that change how much memory a run needs, the most helpful first.
HELPFUL = (
    "batch_size",
    "accumulate",
    "encoder.width",
    "data.resident",
    "steps_per_call",
    "together",
)


def host_memory() -> int | None:
    """Return the bytes of memory that this process can have at most; None: unknown."""
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in map(Path, CONTAINER):
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min((limit for limit in limits if limit > 0), default=None)


@contextmanager
def reporting_out_of_memory(fields: Mapping[str, Any]) -> Iterator[None]:
    """Turn a lack of memory within this context, of host or device, into one line.

    Args:
        fields: the configuration by field, such as {"encoder.width": 64}.

    Yields:
        Nothing.

    Raises:
        UserError: memory was too small; it names the fields that help.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        helpful = [f"{name} (got {fields[name]})" for name in HELPFUL if name in fields]
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        change = f"; change {', '.join(helpful)} so that less is needed" if helpful else ""
        raise UserError(f"out of memory ({reason}){change}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error says that memory of the host or of a device was too small."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):  # of a library that there is
        return any(words in str(error) for words in ("failed to map", "Cannot allocate memory"))
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return True
    xla = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (xla and "RESOURCE_EXHAUSTED" in str(error))
