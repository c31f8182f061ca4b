"""The memory of a process: glibc's settings."""

import os
import sys

KEEP_MEMORY = ("hugetlb=1", "mmap_max=0", "trim_threshold=100000000000", "arena_max=1")


def use_huge_pages() -> None:
    """Starts this process anew with glibc told to keep the memory it has, in huge pages.

    XLA asks for a step's memory anew at every step; by default the CPU gets it as zeroed pages of 4 KiB each time.
    glibc reads these settings only when a process starts. Whoever sets GLIBC_TUNABLES, to "" too, decides.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{setting}" for setting in KEEP_MEMORY)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
