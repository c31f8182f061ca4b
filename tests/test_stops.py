"""A stop is obeyed in every phase: within seconds, with one line and the status of its kind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import TINY

from ssl_jax.runtime import stops
from ssl_jax.runtime.stops import GRACE, SAME, Phase, Stopped, Stops

ROOT = Path(__file__).parent.parent


class Ended(BaseException):
    """What `os._exit` would have done."""


def end_process(status: int) -> None:
    raise Ended(status)


@pytest.fixture
def own(capfd):
    """Stops that raise Ended in place of ending this process, and are not installed."""
    return Stops(end_process)


def lines(capfd) -> list[str]:
    return capfd.readouterr().err.strip().splitlines()


# --- What a signal does in every phase, without signals -------------------------------------------


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)]
)
def test_outside_the_loop_it_is_raised_once(own, number, status, capfd):
    own.arrive(number, 10.0)
    with pytest.raises(Stopped):
        own.handle(number)
    own.handle(number)  # the same signal again: nothing is raised while the first unwinds
    assert own.status == status and own.raised and len(lines(capfd)) == 1


def test_a_process_that_does_not_end_is_ended(own, capfd):
    assert own.end_late(1e9) is None
    own.arrive(signal.SIGTERM, 10.0)
    assert own.end_late(10.0 + GRACE / 2) == pytest.approx(GRACE / 2)
    with pytest.raises(Ended, match="75"):
        own.end_late(10.0 + GRACE)
    assert len(lines(capfd)) == 1


def test_within_the_loop_it_waits_until_all_is_saved(own, capfd):
    with pytest.raises(Stopped), own.saving_first() as begin:
        begin()
        own.arrive(signal.SIGTERM, 10.0)
        own.handle(signal.SIGTERM)
        assert own.number == signal.SIGTERM and not own.raised
        assert own.end_late(1e9) is None, "however long that takes"
    assert lines(capfd) == ["stopped by SIGTERM: stopping as soon as this step is saved"]
    assert own.phase is Phase.RAISING


def test_before_there_is_anything_to_save_it_does_not_wait(own):
    with pytest.raises(Stopped), own.saving_first():
        own.handle(signal.SIGINT)


def test_a_stop_that_a_library_swallowed_is_raised_again_before_the_loop(own):
    with pytest.raises(Stopped):
        own.handle(signal.SIGINT)
    with pytest.raises(Stopped), own.saving_first() as begin:
        begin()
        pytest.fail("went on training")


def test_what_goes_wrong_while_it_saves_is_not_hidden(own):
    with pytest.raises(OSError, match="disk"), own.saving_first() as begin:
        begin()
        own.handle(signal.SIGTERM)
        raise OSError("disk full")
    assert not own.raised and own.phase is Phase.RAISING


def test_an_evaluation_is_given_up_between_its_parts(own, capfd):
    reached = []

    def work():
        own.check()
        own.arrive(signal.SIGTERM, 10.0)
        own.handle(signal.SIGTERM)  # nothing is raised in the middle of a part
        reached.append("the end of the part")
        own.check()
        reached.append("the next part")

    with pytest.raises(Stopped), own.saving_first() as begin:
        begin()
        assert own.unless_stopped(work) is None and reached == ["the end of the part"]
        assert own.phase is Phase.SAVING and not own.raised
        assert own.end_late(1e9) is None, "however long saving takes"
        assert lines(capfd) == ["stopped by SIGTERM: stopping as soon as this step is saved"]
        own.check()  # while it saves
        assert own.unless_stopped(work) is None and len(reached) == 1


def test_an_evaluation_without_a_stop(own):
    with own.saving_first() as begin:
        begin()
        assert own.unless_stopped(lambda: own.check() or 5) == 5
        with pytest.raises(ZeroDivisionError):
            own.unless_stopped(lambda: 1 // 0)
        assert own.phase is Phase.SAVING


def test_an_evaluation_that_had_ended_before_the_signal_was_seen(own):
    with pytest.raises(Stopped), own.saving_first() as begin:
        begin()
        assert own.unless_stopped(lambda: own.handle(signal.SIGTERM) or 5) == 5


def test_outside_the_loop_nothing_is_given_up_but_the_process(own):
    """An evaluation that a start goes on with: all is saved already."""
    reached = []
    with pytest.raises(Stopped), own.saving_first():
        own.unless_stopped(lambda: own.handle(signal.SIGTERM) or reached.append(1))
    assert own.raised and not reached
    own.check()


def test_without_a_stop_nothing_happens(own, capfd):
    with own.saving_first() as begin:
        begin()
        assert own.phase is Phase.SAVING
    assert own.phase is Phase.RAISING and not own.raised and not lines(capfd)


@pytest.mark.parametrize("phase", [Phase.RAISING, Phase.SAVING, Phase.GIVING_UP])
def test_a_second_signal_ends_at_once(own, phase, capfd):
    own.phase = phase
    own.arrive(signal.SIGINT, 10.0)
    own.arrive(signal.SIGINT, 10.0 + SAME / 2)  # of the same stop: `timeout` sends it twice
    with pytest.raises(Ended, match="130"):
        own.arrive(signal.SIGINT, 10.0 + 2 * SAME)
    assert len(lines(capfd)) == 1


def test_the_status_is_that_of_the_first_signal(own):
    own.phase = Phase.SAVING
    own.arrive(signal.SIGTERM, 10.0)
    with pytest.raises(Ended, match="75"):
        own.arrive(signal.SIGINT, 20.0)


def test_a_result_stands(own, capfd):
    """Ctrl-C while Python shuts down: the run has finished all the same."""
    own.phase, own.result = Phase.ENDING, 0
    own.handle(signal.SIGINT)
    with pytest.raises(Ended, match="0"):
        own.arrive(signal.SIGINT, 10.0)
    assert not own.raised and not lines(capfd)


@pytest.mark.parametrize("result", [0, 2])
def test_a_program_that_ends_by_itself(own, result):
    with pytest.raises(SystemExit) as ended:
        stops.run(lambda: result, lambda: True, own)
    assert ended.value.code == result and own.phase is Phase.ENDING


@pytest.mark.parametrize("made_of_it", [None, ImportError, SystemExit])
def test_a_program_that_is_stopped(own, made_of_it, capfd):
    """Whatever a library makes of the exception."""

    def main() -> int:
        try:
            own.handle(signal.SIGTERM)
        except Stopped:
            if made_of_it is None:
                raise
        raise made_of_it("half imported")

    with pytest.raises(SystemExit) as ended:
        stops.run(main, lambda: False, own)
    assert ended.value.code == 75 and len(lines(capfd)) == 1


def test_a_defect_keeps_its_traceback(own):
    with pytest.raises(ZeroDivisionError):
        stops.run(lambda: 1 // 0, lambda: True, own)


def test_a_process_that_nobody_installed_stops_in_takes_no_part(own):
    own.adopt()
    assert not own.number


# --- Processes ------------------------------------------------------------------------------------


def start(program: str, *words: str, **options) -> subprocess.Popen:
    """A Python program, or launch.py for ""; SIGINT is not ignored, as in a background job."""
    heeding = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    words = [*(["-c", program] if program else ["launch.py"]), *words]
    return subprocess.Popen(
        [sys.executable, "-c", heeding, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        **options,
    )


PROGRAM = """
import signal, sys, threading, time
from ssl_jax.runtime import stops
stops.install()
def main():
    print("here", flush=True)
    {body}
    return 0
stops.run(main, lambda: True)
"""
# Bodies that an exception in the main thread does not end.
STUBBORN = {
    "it is swallowed": """
    while True:
        try: time.sleep(60)
        except BaseException: pass""",
    "C code keeps the main thread": "import hashlib; hashlib.pbkdf2_hmac('md5', b'', b'', 10**9)",
    "a thread stays": "threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)",
    "it is made another": """
    try: time.sleep(60)
    except BaseException: raise ImportError('half imported')""",
    "a finalizer prints it": """
    class Late:
        def __del__(self): time.sleep(60)
    del [Late()][0]
    time.sleep(60)""",
}


@pytest.mark.parametrize("body", STUBBORN.values(), ids=STUBBORN)
def test_no_library_keeps_a_process(body):
    process = start(PROGRAM.format(body=body))
    assert process.stdout.readline() == "here\n"
    time.sleep(0.3)  # into the body
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert time.monotonic() - begin < GRACE + 5
    assert process.returncode == 130 and len(error.splitlines()) == 1, error


def test_signals_wait_for_a_new_start():
    """`use_huge_pages` starts the process anew, which has no handlers for a while."""
    program = """
import os, signal, sys
from ssl_jax.runtime import stops
if "again" not in sys.argv:
    stops.install()
    stops.block()
    os.kill(os.getpid(), signal.SIGTERM)
    os.execv(sys.executable, [*sys.orig_argv, "again"])
stops.install()
"""
    process = start(program)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75 and len(error.splitlines()) == 1, error


def test_a_background_job_ignores_control_c():
    program = PROGRAM.format(body="time.sleep(1)").replace(
        "stops.install()", "signal.signal(signal.SIGINT, signal.SIG_IGN); stops.install()"
    )
    process = start(program)
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 0


LONG = [*TINY, "--config.epochs=4000", "--config.checkpoint_every=4000"]


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_run_is_stopped_and_saved(tmp_path, number, status):
    command = ["--config", "configs/quickstart.py", "--workdir", str(tmp_path), *LONG]
    process = start("", *command)
    deadline = time.monotonic() + 240
    rows = tmp_path / "metrics.csv"
    while not rows.exists() or rows.read_text().count("\n") < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    refused = start("", *command)  # a second start on the same directory
    out, error = refused.communicate(timeout=240)
    assert refused.returncode == 2 and not out, error
    assert re.fullmatch(rf"error: --workdir: process {process.pid} on .* is at work in .*\n", error)
    process.send_signal(number)
    out, error = process.communicate(timeout=240)
    assert process.returncode == status and len(error.splitlines()) == 1, error
    step = re.search(r"stopped at step (\d+) of 16000, saved", out)[1]
    assert (tmp_path / "checkpoints" / step).is_dir()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.slow
def test_a_run_outlives_its_terminal(tmp_path):
    """Nobody reads its output, standard error is closed, and a disk is full."""
    words = ["--config", "configs/quickstart.py", "--workdir"]
    for i, end in enumerate(("| head -1", "2>&-", ">/dev/full", ">&- 2>/dev/full </dev/null")):
        command = (
            f"{sys.executable} launch.py {' '.join(words)} {tmp_path}/{i} {' '.join(TINY)} {end}"
        )
        status = "exit ${PIPESTATUS[0]}"
        done = subprocess.run(["bash", "-c", f"{command}; {status}"], cwd=ROOT, capture_output=True)
        assert done.returncode == 0 and (tmp_path / str(i) / "result.json").exists(), done
        assert not done.stderr
