"""What a stop means: Ctrl-C (SIGINT), SIGTERM, SIGHUP of a terminal that is closed, and SIGUSR1,
which a cluster sends before the time of a job is over.

* Within `saving_first`, once the loop has begun, a signal sets a flag. The loop asks for it with
  `requested`, ends its call and saves; then `Stopped` is raised.
* Within `unless_stopped`, where the loop evaluates, `check` asks for the flag between the parts of
  the work: the work is given up, and the loop saves. Nothing is raised in the middle of foreign
  code, which may swallow it.
* Everywhere else (imports, compilation, decoding, probes, reports) a signal raises `Stopped` in
  the main thread. A process that is still there GRACE seconds later is ended by `os._exit`: a
  library swallowed the exception, or C code does not return. Every file is replaced whole, so
  nothing half written counts.
* A second signal ends the process at once.

A stop is one line on standard error. The exit status is 130 after Ctrl-C, else 75, the EX_TEMPFAIL
of sysexits.h: the same command goes on.

A thread sees the signal while the main thread runs C code: the C handler of Python writes a byte to
a socket (`signal.set_wakeup_fd`), in whichever thread the signal arrives.
"""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from types import FrameType
from typing import Any, NoReturn, TypeVar

Result = TypeVar("Result")
GRACE = 3.0  # seconds that the main thread has to end by itself
# Seconds within which further signals are the same stop: `timeout` sends SIGTERM to its child and
# to its group, a terminal sends Ctrl-C to every process of a pipeline, which may pass it on.
SAME = 0.5
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
GO_ON = 75  # exit status, EX_TEMPFAIL: the same command goes on
AT_ONCE = "the same command goes on from what was last saved, if anything was"
AFTER_SAVING = "stopping as soon as this step is saved"


class Stopped(KeyboardInterrupt):
    """Somebody stopped the process. Libraries clean up after it as after Ctrl-C."""


class Phase(Enum):
    """What a signal does now."""

    RAISING = "raise Stopped in the main thread"
    SAVING = "set the flag that the training loop asks for"
    GIVING_UP = "set the flag that `check` asks for"
    ENDING = "end the process, whose result stands"


class Stops:
    """The stops of a process.

    The main thread and the watching thread share it without a lock, which a handler that interrupts
    its holder could never get: one writes `number` and then reads `phase`, the other writes `phase`
    and then reads `number`, so at least one of them sees both.
    """

    def __init__(self, end_process: Callable[[int], object] = os._exit) -> None:
        self.phase = Phase.RAISING
        self.number = 0  # the first signal; 0: none yet
        self.raised = False  # whether Stopped was raised for it, to end the process
        self.result: int | None = None  # exit status of a process that is ending
        self._time = 0.0  # of the first signal, on the monotonic clock
        self._deadline: float | None = None  # when the process is ended by force
        self._line = threading.Lock()  # is taken by whoever prints the line
        self._printed = threading.Event()
        self._end_process = end_process
        self._wake: socket.socket | None = None
        self._lines = 2  # descriptor that the line is written to

    def install(self) -> None:
        """Handle SIGNALS from here on; call it in the main thread.

        SIGINT and SIGHUP stay ignored where they are: in a background job, under nohup.
        """
        block()  # in the thread that starts here for good: `block` then holds signals back
        if self._wake is None:
            self._lines = os.dup(2)
            sys.excepthook = self._uncaught(sys.excepthook)
            watched, self._wake = socket.socketpair()
            self._wake.setblocking(False)
            signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(watched,), name="stops", daemon=True).start()
        for number in SIGNALS:
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.handle)
        unblock()

    @property
    def status(self) -> int:
        """Exit status of a process that is stopped."""
        return 130 if self.number in (0, signal.SIGINT) else GO_ON

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Raise Stopped once where the phase asks for it. Python calls this in the main thread."""
        self.number = self.number or number
        if self.phase is Phase.RAISING and not self.raised:
            self._raise()

    def arrive(self, number: int, now: float) -> None:
        """Take a signal in the watching thread, at `now` of the monotonic clock."""
        second = self._time and now - self._time > SAME
        self._time = self._time or now
        self.number = self.number or number
        if self.phase is Phase.ENDING:
            self._end_process(self.status if self.result is None else self.result)
        elif second:
            self.end()
        else:
            self.report()
            if self.phase is Phase.RAISING:
                self._deadline = now + GRACE

    def report(self) -> None:
        """Print the line of this stop, unless it is printed."""
        if not self._line.acquire(blocking=False):
            self._printed.wait(1.0)  # by the other thread; whoever is here may end the process
            return
        what = f"stopped by {signal.Signals(self.number).name}" if self.number else "interrupted"
        if self.number == signal.SIGINT:
            what = "interrupted"
        saves = self.phase in (Phase.SAVING, Phase.GIVING_UP)
        line = f"{what}: {AFTER_SAVING if saves else AT_ONCE}"
        if saves and self.number == signal.SIGINT:
            line += "; Ctrl-C again stops at once"
        start = "\n" if os.isatty(self._lines) else ""  # behind the progress bar
        with contextlib.suppress(OSError):
            os.write(self._lines, f"{start}{line}\n".encode())
        self._printed.set()

    def end(self) -> None:
        """End the process now, with nothing cleaned up."""
        self.report()
        self._end_process(self.status)

    def end_late(self, now: float) -> float | None:
        """End the process if its grace is over at `now`; return the seconds that are left of it."""
        if self._deadline is None:
            return None
        if now >= self._deadline:
            self.end()
        return max(self._deadline - now, 0.01)

    @contextlib.contextmanager
    def saving_first(self) -> Iterator[Callable[[], None]]:
        """Let the training loop save before a stop.

        Yields:
            begin(): to be called once there is something to save. From then to the end of this
            context a signal only makes `requested` true; at the end, Stopped is raised for it.
        """

        def begin() -> None:
            if self.raised:  # a library swallowed it
                raise Stopped
            self.phase = Phase.SAVING

        try:
            yield begin
        finally:
            if self.phase is Phase.SAVING:
                self.phase = Phase.RAISING
        if self.number and not self.raised:
            self._raise()

    def unless_stopped(self, work: Callable[[], Result]) -> Result | None:
        """Return work(), or None where `check` found a stop within it; then it is given up.

        Within `saving_first`, once the loop has begun. Elsewhere nothing is given up.
        """
        if self.phase is not Phase.SAVING:
            return work()
        self.phase = Phase.GIVING_UP
        try:
            return work()
        except Stopped:
            return None
        finally:
            self.phase = Phase.SAVING

    def check(self) -> None:
        """Raise Stopped where work is to be given up; called between the parts of long work."""
        if self.phase is Phase.GIVING_UP and self.number:
            raise Stopped

    def adopt(self) -> None:
        """Take part in the stop of another process, which both have agreed upon."""
        if self._wake is not None:
            self.number = self.number or signal.SIGTERM

    def _raise(self) -> NoReturn:
        self.raised = True
        if self._wake is not None:
            self.report()
            # Tracebacks follow, of threads, of finalizers and of C code (NumPy's, when imported).
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            self._deadline = time.monotonic() + GRACE
            with contextlib.suppress(OSError):
                self._wake.send(b"\0")  # the thread looks at its deadline
        raise Stopped

    def _uncaught(self, hook: Callable[..., object]) -> Callable[..., object]:
        """Return the hook for uncaught exceptions: of imports before `run`, for instance."""

        def end_or_report(*error: Any) -> None:
            if self.raised:
                self.end()
            hook(*error)

        return end_or_report

    def _watch(self, watched: socket.socket) -> NoReturn:
        while True:
            watched.settimeout(self.end_late(time.monotonic()))
            with contextlib.suppress(TimeoutError):
                for number in watched.recv(64):
                    if number in SIGNALS:
                        self.arrive(number, time.monotonic())


_OWN = Stops()
install, saving_first, adopt = _OWN.install, _OWN.saving_first, _OWN.adopt
unless_stopped, check = _OWN.unless_stopped, _OWN.check


def requested() -> bool:
    """Return whether somebody asked this process to stop."""
    return bool(_OWN.number)


def was_raised() -> bool:
    """Return whether Stopped was raised; whatever exception arrives then may come from it."""
    return _OWN.raised


def block() -> None:
    """Hold SIGNALS back, so that a process that is started anew finds them in `install`."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def unblock() -> None:
    """Let SIGNALS arrive; those that were held back arrive now."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def run(main: Callable[[], int], alone: Callable[[], bool], stops: Stops = _OWN) -> NoReturn:
    """Run a program to the end of its process.

    Args:
        main: the program; returns the exit status.
        alone: whether no other process waits for this one to take its leave.
        stops: the stops of this process.
    """
    try:
        try:
            stops.result = main()
        finally:
            stops.phase = Phase.ENDING  # from here on nothing is raised
    except BaseException:
        if not stops.raised:
            raise
    if stops.raised:
        stops.report()
        stops.result = stops.status
        if alone():  # threads of libraries are not waited for
            atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
            sys.stdout.flush()
            os._exit(stops.result)
    sys.exit(stops.result)
