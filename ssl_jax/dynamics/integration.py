"""Integration of flows in float64, a batch of them in one compiled call. It needs diffrax."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from ssl_jax.errors import UserError

RTOL, ATOL = 1e-11, 1e-13  # tolerances of one step of the integration
MAX_STEPS = 100_000
Group = dict[Any, Any]  # arrays of one rank by name
# name: (the values that a parameter takes, in words; their test, of an array)
Domain = dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]


def check(domain: Domain, **values: Any) -> None:
    """Raise a UserError that names the first parameter outside its domain.

    Args:
        domain: of the parameters that take less than all finite numbers.
        **values: numbers or arrays, of which every element is checked. `beta` may be None.
    """
    for name, value in values.items():
        x = np.asarray(np.nan if value is None else value, np.float64)
        takes, fits = domain.get(name, ("a finite number", np.isfinite))
        right = fits(x) & np.isfinite(x)
        if not (np.all(right) or (name == "beta" and value is None)):
            raise UserError(f"{name}: got {x[~right].flat[0] if x.ndim else value}, takes {takes}")


def solve(
    rates: Callable,
    state: tuple,
    rank: int,
    times: np.ndarray | Sequence[float],
    numbers: Group,
    *,
    vectors: Group | None = None,
    matrices: Group | None = None,
    flags: tuple[tuple[str, Any], ...] = (),
) -> Any:
    """Integrate a flow from a state.

    Args:
        rates: rates(*state, **numbers, **vectors, **matrices, **flags) -> derivatives of the state.
        state: arrays at the first of the times. The last `rank` axes of each are its own, all axes
            before are a batch, which broadcasts over all arguments.
        rank: of each element of the state.
        times: ascending, (T,).
        numbers: arguments without axes of their own; those that are None are left out.
        vectors: arguments with one axis of their own.
        matrices: arguments with two.
        flags: further arguments, hashable, of the whole batch.

    Returns:
        A tuple of one array (..., T, own axes) for each element of the state.

    Raises:
        UserError: the times do not ascend, there is no solution up to the last one, or diffrax is
            not installed.
    """
    diffrax()
    times = np.asarray(times, np.float64)
    if (
        times.ndim != 1
        or len(times) < 2
        or not (np.isfinite(times).all() and (np.diff(times) > 0).all())
    ):
        raise UserError(f"times: got {times.tolist()[:4]}, takes two or more ascending numbers")
    numbers = {name: value for name, value in numbers.items() if value is not None}
    tree = [dict(enumerate(state)), numbers, vectors or {}, matrices or {}]
    batch, tree = spread(tree, [rank, 0, 1, 2])
    with jax.enable_x64(True):
        curves, right = _curves(rates, flags, *tree, times)
    if not np.all(right):
        raise UserError(
            f"times: no solution up to {times[-1]:g} in {MAX_STEPS} steps, takes a shorter time"
        )
    return tuple(np.asarray(curve).reshape(*batch, *curve.shape[1:]) for curve in curves)


def spread(groups: list[Group], ranks: list[int]) -> tuple[tuple[int, ...], list[Group]]:
    """Return the common batch shape, and every array with that batch as its one first axis."""
    groups = [
        {name: np.asarray(value, np.float64) for name, value in group.items()} for group in groups
    ]
    ranked = [
        (array, rank) for group, rank in zip(groups, ranks, strict=True) for array in group.values()
    ]
    batch = np.broadcast_shapes(*(array.shape[: array.ndim - rank] for array, rank in ranked))

    def spread(array: np.ndarray, rank: int) -> np.ndarray:
        own = array.shape[array.ndim - rank :]
        return np.broadcast_to(array, (*batch, *own)).reshape(-1, *own)

    return batch, [
        {k: spread(v, rank) for k, v in group.items()}
        for group, rank in zip(groups, ranks, strict=True)
    ]


def diffrax() -> Any:
    """Return the package diffrax, imported on first use."""
    try:
        import diffrax
    except ImportError as error:
        raise UserError("diffrax: not installed; pip install -e '.[theory]'") from error
    return diffrax


def integrate(
    field: Callable,
    state: tuple,
    start: Any,
    end: Any,
    saveat: Any,
    *,
    event: Any = None,
    atol: float = ATOL,
) -> tuple[Any, Any]:
    """Integrate one flow inside a compiled function.

    The method has order 8: the flows are smooth and hardly stiff.

    Args:
        field: field(*state) -> derivatives of the state.
        state: at the start.
        start: the first time.
        end: the last time.
        saveat: what to return, a `diffrax.SaveAt`.
        event: where to stop before the end, a `diffrax.Event`.
        atol: absolute tolerance of one step.

    Returns:
        The states, and whether the integration succeeded.
    """
    package = diffrax()
    solution = package.diffeqsolve(
        package.ODETerm(lambda t, y, args: field(*y)),
        package.Dopri8(),
        start,
        end,
        None,
        state,
        saveat=saveat,
        stepsize_controller=package.PIDController(rtol=RTOL, atol=atol),
        event=event,
        max_steps=MAX_STEPS,
        throw=False,
        adjoint=package.ForwardMode(),
    )
    return solution.ys, package.is_okay(solution.result)


@partial(jax.jit, static_argnames=("rates", "flags"))
def _curves(
    rates: Callable,
    flags: tuple[tuple[str, Any], ...],
    states: Group,
    numbers: Group,
    vectors: Group,
    matrices: Group,
    times: jax.Array,
) -> tuple[Any, Any]:
    """Return the curves of a batch and whether each integration succeeded."""

    def one(state: Group, arguments: Group) -> tuple[Any, Any]:
        field = partial(rates, **arguments, **dict(flags))
        saved = diffrax().SaveAt(ts=times)
        return integrate(field, tuple(state.values()), times[0], times[-1], saved)

    return jax.vmap(one)(states, numbers | vectors | matrices)
