"""Attacks on a process: signals, a second start, streams that break. The whole command alone."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
from commands import ROOT

from .suite import PRETRAIN, Named, Place, group, second_start

SECONDS = 100  # after which a process counts as endless
STREAMS = (">&-", "2>&-", ">/dev/full", "2>/dev/full", ">&- 2>&- <&-", "| head -c 1")


@group("stops", quick=0)
def stops(rng: np.random.Generator) -> Named:
    """Stops at random moments of a start that trains, second starts, and broken streams."""
    for number in range(10):
        name = ("SIGTERM", "SIGINT")[number % 2]
        moment = rng.uniform(0.2, 9)
        yield f"{name} after {moment:.1f} s", partial(stop, name, moment)
    for moment in (1.0, 3.0, 6.0):
        yield f"SIGKILL after {moment:.1f} s", partial(stop, "SIGKILL", moment)
    yield "a second start beside the first", beside
    for streams in STREAMS:
        yield f"streams {streams}", partial(broken, streams)


def start(words: list[str], shell: str = "") -> subprocess.Popen:
    """Start the command line in a process of its own; `shell`: redirections behind it."""
    command = [sys.executable, str(ROOT / "launch.py"), *words]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    if shell:
        command = ["bash", "-c", f'set -o pipefail; "$@" {shell}', "bash", *command]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else a job ignores it
    try:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, text=True, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)


def stop(name: str, moment: float, place: Place) -> None:
    """Stop a run at a moment, and let a second start go on to the same end."""
    words = [*PRETRAIN, f"--workdir={place.stopped}"]
    process = start(words)
    time.sleep(moment)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=SECONDS)
    lines = [line for line in errors.splitlines() if "warning: " not in line]
    status = process.returncode
    expected = {"SIGTERM": 75, "SIGINT": 130, "SIGKILL": -signal.SIGKILL}[name]
    assert status in (0, expected), (status, errors[-1000:])
    assert "Traceback" not in errors and len(lines) == (status not in (0, -signal.SIGKILL)), errors
    second_start(place.stopped, place.base)


def beside(place: Place) -> None:
    """Start a run twice: one goes on to the end, and the other is refused in one line."""
    words = [*PRETRAIN, f"--workdir={place.stopped}"]
    both = [start(words), start(words)]
    ended = [process.communicate(timeout=SECONDS) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], ended
    refused = next(
        error for process, (_, error) in zip(both, ended, strict=True) if process.returncode
    )
    assert refused.count("\n") == 1 and "is at work in" in refused
    second_start(place.stopped, place.base)


def broken(streams: str, place: Place) -> None:
    """Run with streams that break: it goes on to the end."""
    process = start([*PRETRAIN, f"--workdir={place.stopped}"], streams)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0 and "Traceback" not in errors, errors[-1000:]
    assert (place.stopped / "result.json").exists()
    second_start(place.stopped, place.base)
