"""What the tests of the C++ library share."""

import os
import platform
import shutil
import subprocess
import sys

import pytest

HAS_COMPILER = any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
needs_native = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86")
narrower = pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx"])


def check_definition(file, count, flags, tmp_path):
    """The file's `count` tests by the definition pass with a library compiled under these flags."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", file]
    environment = os.environ | {"SSL_JAX_CXXFLAGS": flags, "SSL_JAX_CACHE": str(tmp_path)}
    run = subprocess.run(
        [*command, "-k", "by_definition"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0 and f"{count} passed" in run.stdout, run.stdout
    assert len(list((tmp_path / "native").iterdir())) == 1
