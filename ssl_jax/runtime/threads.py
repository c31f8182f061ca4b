"""The number of threads of the libraries that XLA calls."""

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def lapack_on_one_thread() -> Iterator[None]:
    """Restrict an `eigh` on the CPU to the thread that calls it, within this context.

    XLA takes LAPACK from SciPy, whose own threads busy-wait for each other. Beside a step that
    keeps every core busy they wait long: a DirectPred step took half as long again as BYOL's, and
    takes as long as BYOL's in this context (`benchmarks/predictor.py`).

    Yields:
        Nothing.
    """
    # XLA's LAPACK. The limit applies only to libraries that are loaded.
    import scipy.linalg.cython_lapack  # noqa: F401

    with threadpool_limits(limits=1, user_api="blas"):
        yield
