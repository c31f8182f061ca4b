"""How several processes find each other: by flags, by the environment, or not at all."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ssl_jax.errors import UserError
from ssl_jax.launch import join_processes
from ssl_jax.runtime import machine

ROOT = Path(__file__).parent.parent
NAMES = ("SSL_JAX_COORDINATOR", "SSL_JAX_PROCESSES", "SSL_JAX_PROCESS")
SLURM = "SLURM_STEP_NUM_TASKS"


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed is told, if anything; the environment says nothing."""
    calls = []

    def initialize(coordinator=None, *, num_processes=None, process_id=None):
        calls.append((coordinator, num_processes, process_id))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(machine, "require_address", lambda coordinator: None)
    monkeypatch.setattr(machine, "require_free_port", lambda coordinator: None)
    for name in (*NAMES, SLURM):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def environment(monkeypatch):
    """environment(coordinator, processes, process), None: not there."""

    def put(*values):
        for name, value in zip(NAMES, values, strict=True):
            if value is not None:
                monkeypatch.setenv(name, value)

    return put


def test_without_a_coordinator_nothing_is_joined(joined, environment):
    join_processes(None, None, None)
    join_processes(None, 2, 1)
    environment(None, "2", "1")
    join_processes(None, None, None)
    assert joined == []


def test_under_srun_jax_finds_the_others(joined, environment, monkeypatch):
    monkeypatch.setenv(SLURM, "1")
    join_processes(None, None, None)
    monkeypatch.setenv(SLURM, "2")
    join_processes(None, None, None, several=False)  # a sweep: two starts that share its directory
    assert joined == []
    join_processes(None, None, None)
    join_processes("host:1234", 3, 1)
    assert joined == [(None, None, None), ("host:1234", 3, 1)]


@pytest.mark.parametrize("process", [0, 2])
def test_by_flags(joined, process):
    join_processes("host:1234", 3, process)
    assert joined == [("host:1234", 3, process)]


def test_by_the_environment(joined, environment):
    environment("host:1234", "3", "2")
    join_processes(None, None, None)
    assert joined == [("host:1234", 3, 2)]


def test_flags_go_before_the_environment(joined, environment):
    environment("host:1234", "3", "2")
    join_processes("other:5", 4, 0)
    join_processes(None, None, 0)
    join_processes("other:5", 8, None)
    assert joined == [("other:5", 4, 0), ("host:1234", 3, 0), ("other:5", 8, 2)]


@pytest.mark.parametrize(
    "processes, process, told",
    [
        (None, None, [None, None]),
        (2, None, [2, None]),
        (None, 0, [None, 0]),
        (2, 2, [2, 2]),
        (2, -1, [2, -1]),
        (0, 0, [0, 0]),
        (-1, -2, [-1, -2]),
    ],
)
def test_numbers_that_are_not_there_or_do_not_fit_are_refused(joined, processes, process, told):
    with pytest.raises(UserError) as refused:
        join_processes("host:1234", processes, process)
    expected = (
        f"--processes, --process: got {told}, take how many there are and this one's number from 0"
    )
    assert str(refused.value) == expected and joined == []


@pytest.mark.parametrize("text", ["two", "", "-1", "1.0"])
def test_an_environment_that_holds_no_number_is_refused(joined, environment, text):
    environment("host:1234", "2", text)
    with pytest.raises(UserError, match=r"got \[2, None\]"):
        join_processes(None, None, None)
    assert joined == []


def test_two_processes_meet():
    """For real: one is told by flags, the other by the environment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    program = (
        "import jax; from ssl_jax import launch; launch.join_processes({}); "
        "print(jax.process_index(), jax.process_count())"
    )
    plain = {name: value for name, value in os.environ.items() if name not in NAMES} | {
        "JAX_PLATFORMS": "cpu"
    }
    told = plain | dict(zip(NAMES, (place, "2", "1"), strict=True))
    given = [(f"{place!r}, 2, 0", plain), ("None, None, None", told)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program.format(words)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for words, environment in given
    ]
    ended = [(process.communicate(timeout=60), process.returncode) for process in started]
    assert [(out, status) for (out, _), status in ended] == [("0 2\n", 0), ("1 2\n", 0)], ended
