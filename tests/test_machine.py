"""What the machine lacks is one line, before XLA ends the process with many."""

import os
import resource
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_jax.errors import UserError
from ssl_jax.runtime.machine import (
    A_CORE,
    ADDRESS_SPACE,
    require_address,
    require_address_space,
    require_free_port,
)

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "coordinator",
    "nonsense host: :12 host:0 host:65536 host:12x a:b:12 http://host:12 host:12/x [::1:12".split()
    + ["", "a host:12", "h\xf6" * 60 + ":12", "no-such-host.invalid:12", "-:1", "..:1"],
)
def test_a_coordinator_that_is_no_address(coordinator):
    with pytest.raises(UserError, match="--coordinator: got .* takes HOST:PORT") as error:
        require_address(coordinator)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("coordinator", ["localhost:1234", "127.0.0.1:1", "[::1]:65535"])
def test_an_address(coordinator):
    require_address(coordinator)


def test_a_port_that_somebody_has():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"localhost:{port}.*Address already in use"):
            require_free_port(f"localhost:{port}")
    require_free_port(f"localhost:{port}")


@pytest.mark.parametrize(
    "limit, cores, enough",
    [
        (800e6, 2, False),
        # where the quickstart ends on two cores, and where it does not; see ADDRESS_SPACE
        (1331.2e6, 2, False),
        (1433.6e6, 2, True),
        (1433.6e6, 16, False),
        (4e12, 64, True),
        (None, 2, True),
    ],
)
def test_address_space(limit, cores, enough, monkeypatch):
    found = resource.RLIM_INFINITY if limit is None else int(limit)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (found, found))
    if enough:
        return require_address_space(cores)
    needed = (ADDRESS_SPACE + cores * A_CORE) / 1e6
    with pytest.raises(UserError, match=f"ulimit -v: got {limit / 1e6:.0f} MB.* {needed:.0f} MB"):
        require_address_space(cores)


START = f"{shlex.quote(sys.executable)} launch.py --config configs/quickstart.py --workdir"


@pytest.mark.parametrize(
    "command, words",
    {
        f"JAX_PLATFORMS=cuda {START} w": ["JAX_PLATFORMS", "'cuda'", "no device"],
        f"JAX_PLATFORMS=abacus {START} w": ["JAX_PLATFORMS", "'abacus'", "cpu"],
        f"ulimit -v 800000; {START} w": ["ulimit -v", "819 MB"],
        f"{START} w --coordinator here --processes 2 --process 0": ["--coordinator", "HOST:PORT"],
    }.items(),
)
def test_a_start_is_refused_in_one_line(command, words, tmp_path):
    command = command.replace(" w", f" {tmp_path}/w")
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "w").exists()


def test_a_backend_of_matplotlib_that_there_is_not():
    """It is never asked: figures are files."""
    program = "from ssl_jax.reports import pyplot; print(pyplot.get_backend())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"MPLBACKEND": "abacus", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.lower() == "agg\n" and not done.stderr, done
