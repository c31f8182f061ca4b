"""One start at a time works on a work directory, whatever became of the one before it."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_jax.errors import UserError
from ssl_jax.runtime import lease
from ssl_jax.workdir.lock import NAME, locked

HOLD = """
import sys, time
from pathlib import Path
from ssl_jax.workdir.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["flock", "no flock"])
def kind(request, monkeypatch):
    """A file system that locks, and one that does not know how."""
    if request.param == "no flock":

        def refuse(file: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def test_the_second_is_refused_with_the_name_of_the_first(kind, tmp_path):
    who = rf"--workdir: process {os.getpid()} on \S+ is at work in {tmp_path}; "
    with locked(tmp_path):
        (tmp_path / "mine").touch()
        with pytest.raises(UserError, match=who), locked(tmp_path):
            pytest.fail("two at once")
    with locked(tmp_path):
        assert (tmp_path / "mine").exists()


def test_nothing_is_left_behind(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert json.loads((tmp_path / "a/b" / NAME).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), locked(tmp_path / "a" / "b"):
        (tmp_path / "a/b/result.json").touch()
        raise KeyError
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["result.json"]


def test_a_dead_holder_holds_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {process.pid} "), locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    assert (tmp_path / NAME).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_the_file_may_vanish_between_open_and_lock(tmp_path, monkeypatch):
    """The holder before removes it: a lock on a file without a name keeps nobody out."""
    real, calls = fcntl.flock, []

    def late(file: int, operation: int) -> None:
        if not calls:
            (tmp_path / NAME).unlink()
        calls.append(file)
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path):
        assert len(calls) == 2 and (tmp_path / NAME).exists()


NOBODY = ["", "{", "[]", "null", "{}", 3000 * "[", "\udcff", '{"pid": 1, "host": "a"}']
NOBODY += [json.dumps(lease.signature() | {name: [1]}) for name in ("pid", "host")]


def test_a_holder_is_named_without_what_moves_the_cursor(tmp_path):
    with (tmp_path / NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(lease.signature() | {"pid": 7, "host": "a\x1b[2J\n" + 500 * "b"}))
        file.flush()
        with pytest.raises(UserError) as caught, locked(tmp_path):
            pass
    assert str(caught.value).startswith(r"--workdir: process 7 on a\x1b[2J\nbbb")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize("text", NOBODY)
def test_a_holder_that_cannot_be_read(text, tmp_path):
    with (tmp_path / NAME).open("w", errors="surrogateescape") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(text)
        file.flush()
        with pytest.raises(UserError, match="another process is at work"), locked(tmp_path):
            pass


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "theirs").write_text("mine")
    (tmp_path / NAME).symlink_to("theirs")
    with pytest.raises(UserError, match=re.escape(NAME)), locked(tmp_path):
        pass
    assert (tmp_path / "theirs").read_text() == "mine"


def test_where_no_directory_can_be_the_task_says_so(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with locked(path):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_without_locks_a_lease_of_a_process_that_died_is_taken(tmp_path, monkeypatch):
    path = lease.claim(tmp_path / ".lease")
    path.write_text(json.dumps(lease.signature() | {"birth": "0"}))
    monkeypatch.setattr(fcntl, "flock", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSYS, "")))
    with locked(tmp_path):
        assert (tmp_path / ".lease" / "2").exists()
