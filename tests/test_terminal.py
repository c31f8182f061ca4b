"""What is said at the terminal: by one process of several, beside the progress bar and not through
it.
"""

import jax
import pytest

from ssl_jax.runtime.terminal import is_writer, progress_bar, say


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


def test_a_progress_bar_goes_on_from_where_the_run_stopped(as_process, capsys):
    as_process(0)
    with progress_bar(10, 4) as bar:
        assert (bar.total, bar.n, bar.initial, bar.unit) == (10, 4, 4, "step")
        bar.update(6)
        assert bar.n == 10
    out, error = capsys.readouterr()
    assert out == "" and "10/10" in error


def test_the_other_processes_have_no_progress_bar(as_process, capsys):
    as_process(1)
    with progress_bar(10, 4) as bar:
        bar.update(6)
    assert bar.disable and capsys.readouterr() == ("", "")


def test_a_line_does_not_break_the_bar(as_process, capsys):
    """The bar is cleared before the line, and drawn again after it."""
    as_process(0)
    with progress_bar(10, 0) as bar:
        bar.refresh()
        before = len(capsys.readouterr().err)
        say("a line")
        out, error = capsys.readouterr()
        assert before and out == "a line\n" and "0/10" in error and error.startswith("\r")
