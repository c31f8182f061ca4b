"""The threads of libraries that XLA calls."""

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def lapack_on_one_thread() -> Iterator[None]:
    """While it lasts, an `eigh` on the CPU uses the thread that it is called on, and no others.

    XLA takes LAPACK from SciPy, whose own threads wait for each other in a loop; beside a step that keeps every core
    busy they wait for long: a DirectPred step took half as long again as BYOL's, and takes as long now
    (`benchmarks/predictor.py`).
    """
    import scipy.linalg.cython_lapack  # noqa: F401, what XLA calls: it can only be told once it is there

    with threadpool_limits(limits=1, user_api="blas"):
        yield
