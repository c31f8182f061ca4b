"""The memory of a process: glibc's settings, and whether they are worth a new start."""

import os
import sys
from glob import glob
from importlib.util import find_spec

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
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
