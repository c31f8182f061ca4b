"""What the machine must offer before a task starts; what it lacks is one UserError.

XLA ends the process with an abort or a traceback of its own where these are missing.
"""

import contextlib
import os
import re
import socket

from ssl_jax.errors import UserError

# Of the quickstart to its end, one epoch on two cores: 1.341 GB suffice; with 1.300 to 1.331 GB the
# probes ended in an abort of C++ or LLVM, or in a library that could not be mapped. A core takes 13
# to 74 MB, for the stacks of its threads. Larger networks take more.
ADDRESS_SPACE, A_CORE = 1_370_000_000, 15_000_000


def require_address_space(cores: int | None = None) -> None:
    """Raise UserError where this process may not have the bytes of addresses that a run takes.

    `cores`: how many it may use; None: those that it may.
    """
    try:
        import resource
    except ImportError:  # not a Unix
        return
    if cores is None:
        affinity = getattr(os, "sched_getaffinity", None)  # not on a Mac
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    needed = ADDRESS_SPACE + A_CORE * cores
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise UserError(
            f"ulimit -v: got {limit / 1e6:.0f} MB of address space, takes at least "
            f"{needed / 1e6:.0f} MB, and more for large networks; raise it, or set it to unlimited"
        )


def require_devices() -> None:
    """Raise UserError where JAX has no devices of the kind that it is told to use."""
    import jax

    try:
        jax.devices()
    # RuntimeError; AssertionError where a plugin is missing that a platform needs
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        lines = str(error).strip().splitlines()
        why = f" ({lines[0][:200]})" if lines else ""
        raise UserError(
            f"JAX_PLATFORMS: got {asked!r}, of which JAX finds no device{why}; takes the name of a "
            "platform that this machine and this installation have, such as cpu, or nothing"
        ) from error


def require_address(coordinator: str) -> None:
    """Raise UserError unless `coordinator` is HOST:PORT of a host that can be found."""
    match = re.fullmatch(r"(\[[^\]]+\]|[^:\[\]/\s]+):(\d+)", coordinator)
    takes = "takes HOST:PORT of process 0, such as node1:1234"
    if not match or not 0 < int(match[2]) < 2**16:
        raise UserError(f"--coordinator: got {coordinator!r}, {takes}")
    with contextlib.suppress(UnicodeError):  # a name that no host can have
        try:
            socket.getaddrinfo(match[1].strip("[]"), int(match[2]))
            return
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"--coordinator: got {coordinator!r} ({why}), {takes}") from error
    raise UserError(f"--coordinator: got {coordinator!r}, {takes}")


def require_free_port(coordinator: str) -> None:
    """Raise UserError where another program listens at the port of `coordinator`, process 0."""
    port = int(coordinator.rpartition(":")[2])
    kind = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        with socket.socket(kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        raise UserError(
            f"--coordinator: got {coordinator!r}, whose port process 0 cannot have "
            f"({error.strerror or error}); takes a port that is free on its host"
        ) from error
