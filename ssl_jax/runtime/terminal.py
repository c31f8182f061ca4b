"""Output at the terminal, which a run outlives.

Lines and progress go through here: once for all processes, above the progress bar. A stream that
breaks (`| head -1`, a full disk, a terminal that is gone) turns silent, and the run goes on.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from ssl_jax.files import size
from ssl_jax.text import printable, shortened

if TYPE_CHECKING:
    from tqdm import tqdm

# Seconds between two lines of progress where standard error is no terminal: at least the first, at
# most the second, and between them one for each TENTH of the whole.
SOON, LATE = 30.0, 600.0
TENTH = 0.1
LONGEST = 2000  # characters of an error; a value that the user gave may have any number


class Progress(Protocol):
    """What `progress_bar` returns; a context that closes it."""

    n: Any  # how many are done

    def update(self, n: Any = 1) -> object:
        """Add `n` that were done since."""
        ...

    def set_postfix(self, ordered_dict: Any = None) -> object:
        """Show these texts by name beside the numbers."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: Any, error: Any, traceback: Any, /) -> object: ...


def is_writer() -> bool:
    """Return whether this process is the one that writes files and prints lines."""
    import jax

    return jax.process_index() == 0


_name: ContextVar[str] = ContextVar("name", default="")


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Put a name before every line that is said within this context: of several runs, which one."""
    token = _name.set(f"{name}: ")
    try:
        yield
    finally:
        _name.reset(token)


def say(line: str) -> None:
    """Print a line, or a table of lines, above the progress bar, once for all processes."""
    if is_writer():
        _write("\n".join(printable(_name.get() + part) for part in line.split("\n")), sys.stdout)


def warn(line: str) -> None:
    """Print a warning of one line on standard error, in every process."""
    _write(f"warning: {printable(' '.join(line.split()))}", sys.stderr)


def complain(error: Exception) -> None:
    """Print a user's mistake as one line on standard error, the middle of a very long one cut."""
    line = printable(" ".join(str(error).split()))
    _write(f"error: {shortened(line, LONGEST)}", sys.stderr)


def progress_bar(
    total: int,
    start: int,
    unit: str = "step",
    title: str = "",
    delay: float = 0,
    shown: bool = True,
) -> Progress:
    """Return the progress of a long work; only the writer shows it.

    Args:
        total: how many there are.
        start: how many of them are done.
        unit: what is counted; "B" for bytes, which are shown in kB, MB and so on.
        title: what is being done.
        delay: seconds before the bar is shown.
        shown: whether it is shown at all.

    Returns:
        A bar at a terminal; elsewhere a line now and then.
    """
    shown, title = shown and is_writer(), printable(title)
    if shown and not _at_terminal():
        return ProgressLines(total, start, unit, title)
    return _bar(total, start, unit, title, delay, shown)


def _at_terminal() -> bool:
    return sys.stderr.isatty()


def _bar(total: int, start: int, unit: str, title: str, delay: float, shown: bool) -> "tqdm":
    from tqdm import tqdm

    return tqdm(
        desc=title or None,
        total=total,
        initial=start,
        unit=unit,
        unit_scale=unit == "B",
        delay=delay,
        disable=not shown,
        dynamic_ncols=True,
        smoothing=0.1,
    )


class ProgressLines:
    """Progress as a line of a log now and then: done, rate and time to go."""

    def __init__(self, total: int, start: int, unit: str, title: str) -> None:
        self.n = start
        self._total, self._unit, self._title = total, unit, title
        self._texts: dict[str, str] = {}
        # (done, when) at the last line; the first of it, which may compile, is counted out
        self._last: tuple[int, float] | None = None

    def update(self, n: int = 1) -> None:
        """Add `n` that were done since, and print a line where one is due."""
        self.n += n
        now = time.monotonic()
        if self._last is None:
            self._last = self.n, now
            return
        done, seconds = self.n - self._last[0], now - self._last[1]
        if seconds < SOON or self.n >= self._total:
            return
        if done >= TENTH * self._total or seconds >= LATE:
            _write(self._line(done / seconds), sys.stderr)
            self._last = self.n, now

    def set_postfix(self, ordered_dict: dict[str, str] | None = None) -> None:
        """Show these texts by name at the end of the next line."""
        self._texts = ordered_dict or {}

    def _line(self, rate: float) -> str:
        title = f"{self._title}: " if self._title else ""
        done = f"{self._unit} {self.n} of {self._total}"
        speed = f"{rate:.3g} {self._unit}s/s" if rate >= 1 else f"{1 / rate:.3g} s/{self._unit}"
        if self._unit == "B":
            done, speed = f"{size(self.n)} of {size(self._total)}", f"{size(round(rate))}/s"
        done += f" ({self.n / self._total:.0%})"
        to_go = f"{spell((self._total - self.n) / rate)} to go"
        texts = [f"{name} {text}" for name, text in self._texts.items()]
        return title + ", ".join([done, speed, to_go, *texts])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any, /) -> None:
        pass


def spell(seconds: float) -> str:
    """Return a duration as text: 75 -> "1 min", 4000 -> "1 h 07 min"."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _write(line: str, stream: TextIO) -> None:
    """Print a line above the progress bar, at once; a broken stream loses it."""
    from tqdm import tqdm

    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        tqdm.write(line, file=stream)
        stream.flush()


def secure_streams() -> None:
    """Give this process standard streams that no write can end it by. Call it first of all.

    A stream that is closed at the start (`2>&-`) is opened on the null device. Its number would go
    to the next file that is opened, and whatever libraries print would be written into that.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or open(number, "w", closefd=False)  # noqa: SIM115
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # characters that a locale lacks
        setattr(sys, name, LastingStream(stream))


class LastingStream:
    """A text stream that loses what it cannot write, and raises nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, or lose it; return its length."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what is buffered, or keep it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
