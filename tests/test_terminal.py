"""What is said at the terminal: by one process of several, beside the progress bar and not through
it.
"""

import errno
import io
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ssl_jax.errors import UserError
from ssl_jax.runtime import terminal
from ssl_jax.runtime.terminal import (
    LATE,
    SOON,
    LastingStream,
    ProgressLines,
    complain,
    is_writer,
    progress_bar,
    say,
    spell,
    warn,
)


@pytest.fixture
def at_a_terminal(monkeypatch):
    monkeypatch.setattr(terminal, "_at_terminal", lambda: True)


@pytest.fixture
def as_process(monkeypatch):
    """as_process(i): from now on this is process i of several."""
    return lambda number: monkeypatch.setattr(jax, "process_index", lambda *backend: number)


@pytest.mark.parametrize("number, expected", [(0, True), (1, False), (7, False)])
def test_the_first_process_writes(as_process, number, expected):
    as_process(number)
    assert is_writer() is expected


def test_a_line_is_said_once_for_all_processes(as_process, capsys):
    for number in range(3):
        as_process(number)
        say(f"from {number}")
    out, error = capsys.readouterr()
    assert (out, error) == ("from 0\n", "")


def test_a_progress_bar_goes_on_from_where_the_run_stopped(as_process, at_a_terminal, capsys):
    as_process(0)
    with progress_bar(10, 4) as bar:
        assert (bar.total, bar.n, bar.initial, bar.unit) == (10, 4, 4, "step")
        bar.update(6)
        assert bar.n == 10
    out, error = capsys.readouterr()
    assert out == "" and "10/10" in error


def test_the_other_processes_have_no_progress_bar(as_process, at_a_terminal, capsys):
    as_process(1)
    with progress_bar(10, 4) as bar:
        bar.update(6)
    assert bar.disable and capsys.readouterr() == ("", "")


def test_a_line_does_not_break_the_bar(as_process, at_a_terminal, capsys):
    """The bar is cleared before the line, and drawn again after it."""
    as_process(0)
    with progress_bar(10, 0) as bar:
        bar.refresh()
        before = len(capsys.readouterr().err)
        say("a line")
        out, error = capsys.readouterr()
        assert before and out == "a line\n" and "0/10" in error and error.startswith("\r")


def test_warnings_and_mistakes_are_one_line_on_standard_error(capsys):
    warn("the cache\nis damaged")
    complain(UserError("epochs: got 0,\n  takes more"))
    assert capsys.readouterr() == (
        "",
        "warning: the cache is damaged\nerror: epochs: got 0, takes more\n",
    )


# --- Progress in a log ----------------------------------------------------------------------------


def test_where_no_terminal_is_there_are_lines(as_process, capsys):
    as_process(0)
    with progress_bar(10, 4) as bar:
        bar.update(6)
        bar.set_postfix({"loss": "1"})
        assert isinstance(bar, ProgressLines) and bar.n == 10
    assert capsys.readouterr() == ("", "")


def printed(total: int, rate: float, monkeypatch, capsys, start: int = 0) -> list[tuple]:
    """[(second, line)] of a work of so many steps a second, after a first that takes a minute."""
    now, found = [0.0], []
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    lines = ProgressLines(total, start, "step", "")
    for i in range(total - start):
        now[0] += 60 if i == 0 else 1 / rate
        lines.update()
        lines.set_postfix({"loss": "0.3"})
        if text := capsys.readouterr().err:
            found.append((now[0], text.rstrip("\n")))
    return found


@pytest.mark.parametrize("start", [0, 5000])
@pytest.mark.parametrize("rate", [0.5, 2, 30, 1e4])
def test_lines_come_now_and_then(rate, start, monkeypatch, capsys):
    found = printed(10_000, rate, monkeypatch, capsys, start)
    times = [60, *(time for time, _ in found)]
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    tenth = min(max(1000 / rate, SOON), LATE)
    assert all(gap == pytest.approx(tenth, rel=0.01) for gap in gaps)
    assert len(found) == int(((10_000 - start - 1.5) / rate) / tenth)


def test_a_line_says_how_far_how_fast_and_how_long(monkeypatch, capsys):
    """The first step, which compiles, does not count into the speed."""
    found = printed(10_000, 2, monkeypatch, capsys)
    assert found[0][1] == "step 1001 of 10000 (10%), 2 steps/s, 1 h 15 min to go, loss 0.3"
    slow = printed(1000, 0.01, monkeypatch, capsys)
    assert slow[0][1] == "step 7 of 1000 (1%), 100 s/step, 27 h 35 min to go, loss 0.3"


def test_bytes_are_shown_in_their_multiples(as_process, at_a_terminal, monkeypatch, capsys):
    as_process(0)
    with progress_bar(2 * 10**9, 0, "B", "reading a\x1b[2J\nb") as bar:
        bar.update(10**9)
        bar.refresh()
    error = capsys.readouterr().err
    assert "1.00G/2.00G" in error and r"reading a\x1b[2J\nb: " in error
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    lines = ProgressLines(2 * 10**9, 0, "B", "reading")
    for _ in range(2):
        now[0] += 100
        lines.update(5 * 10**8)
    line = "reading: 1 GB of 2 GB (50%), 5 MB/s, 3 min to go\n"
    assert capsys.readouterr().err == line


def test_short_works_are_not_shown(as_process, at_a_terminal, capsys):
    as_process(0)
    with progress_bar(2, 0, delay=60) as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "seconds, text", [(59.4, "59 s"), (75, "1 min"), (3599, "1 h 00 min"), (4000, "1 h 07 min")]
)
def test_durations(seconds, text):
    assert spell(seconds) == text


# --- Streams that break ---------------------------------------------------------------------------


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.EPIPE, "Broken pipe")

    def flush(self) -> None:
        raise OSError(errno.EPIPE, "Broken pipe")


def test_a_broken_stream_is_silent(monkeypatch, as_process):
    as_process(0)
    monkeypatch.setattr(sys, "stdout", Broken())
    monkeypatch.setattr(sys, "stderr", Broken())
    say("a line")
    warn("another")
    stream = LastingStream(Broken())
    assert stream.write("abc") == 3 and stream.flush() is None and not stream.closed


def test_what_a_stream_can_write_it_writes():
    kept = io.StringIO()
    stream = LastingStream(kept)
    print("a line", file=stream)
    assert kept.getvalue() == "a line\n"


SECURE = """
import os, sys
from ssl_jax.runtime.terminal import secure_streams
secure_streams()
file = open("/dev/null")
print("out")
print("error", file=sys.stderr)
os.write(2, b"from C")
print(file.fileno(), "\\udcff")
"""


@pytest.mark.parametrize(
    "end, out",
    [
        ("", r"out\n\d \\udcff\n"),
        ("2>&-", r"out\n([3-9]) \\udcff\n"),
        ("<&- 2>&-", r"out\n([3-9]) \\udcff\n"),
        (">/dev/full", ""),
        (">&-", ""),
        (">&- 2>&- <&-", ""),
        ("| true", ""),
    ],
)
def test_a_program_ends_by_its_result(end, out, tmp_path):
    """Its number 2 is no file's, and Python's own last flush changes nothing."""
    (tmp_path / "program.py").write_text(SECURE)
    command = f"{sys.executable} {tmp_path}/program.py {end}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch(out, done.stdout), done
    assert done.stderr in ("", "error\nfrom C")


def test_progress_goes_through_one_door():
    """A bar of tqdm's own would show in every process, and break the lines of a log."""
    package = Path(terminal.__file__).parent.parent
    users = [path for path in package.rglob("*.py") if "tqdm" in path.read_text(encoding="utf-8")]
    assert users == [Path(terminal.__file__)]
