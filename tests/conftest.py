"""Four CPU devices, and JAX at its strictest: silent broadcasting, reused keys and new warnings are
errors.
"""

import atexit
import os
import shutil
import signal
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# All workers, and the commands that tests start, compile each program once between them, and leave
# the user's own cache alone. The first process of pytest makes the folder and takes it away; its
# workers have its environment.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ssl_jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# The tests compile far longer than they compute: LLVM's optimisations cost more here than they
# save.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_configure(config):
    """Every warning is an error, but for those below, each with its date and its reason."""
    config.addinivalue_line("filterwarnings", "error")
    # 2026-11-27, Python 3.12.1: multiprocessing's tracker of semaphores warns where the garbage
    # collector runs inside it, whichever test that happens to be.
    reentrant = "ignore:ResourceTracker called reentrantly:UserWarning"
    config.addinivalue_line("filterwarnings", reentrant)
    # 2026-11-28, jax 0.10.2: it writes a program in place; who meets half of one compiles anew.
    half = "ignore:Error reading persistent compilation cache entry:UserWarning"
    config.addinivalue_line("filterwarnings", half)


@pytest.fixture
def heeds_control_c():
    """Handle SIGINT: a background job, and the commands that it starts, would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
