"""A lease has one holder, whoever races for it, and outlives no holder that died."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ssl_jax.errors import UserError
from ssl_jax.runtime import lease

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from pathlib import Path
from ssl_jax.runtime import lease
path = lease.claim(Path(sys.argv[1]))
with lease.holding(path, beat=0.05) as check:
    print("held", flush=True)
    while True:
        time.sleep(0.01)
        try:
            check()
        except lease.LeaseLost as lost:
            sys.exit(str(lost))
"""
# Every thread of every process wants every lease, until it was held TURNS times. Some holders let
# it go, some vanish as another machine does, some as a process that ended does. `alone` finds out
# whether two ever hold it at once.
RACE = """
import json, os, random, sys, threading, time
from pathlib import Path
from ssl_jax.runtime import lease

def alone(busy):
    os.close(os.open(busy, os.O_CREAT | os.O_EXCL))
    time.sleep(random.uniform(0, 0.002))
    busy.unlink()

def leave(path):
    way = random.choice(["free", "machine", "process"])
    if way == "free":
        path.write_text(lease.FREE)
    elif way == "process":
        gone = lease.signature() | {"birth": "0"}
        path.with_suffix(".new").write_text(json.dumps(gone))
        os.replace(path.with_suffix(".new"), path)
    else:
        os.utime(path, (0, 0))

def race(root, turns, holders):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        mine = [
            folder
            for folder in root.glob("lease-*")
            if int((lease.newest(folder) or folder / "0").name) < turns
        ]
        if not mine:
            return
        folder = random.choice(mine)
        path = lease.claim(folder, stale=3600)
        if path is not None:
            alone(root / f"busy-{folder.name}")
            holders.append(str(path.relative_to(root)))
            leave(path)
    raise TimeoutError("a lease stayed with one that had left it")

root, threads, turns = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
while not (root / "go").exists():
    time.sleep(0.001)
holders, wrong = [], []
threading.excepthook = lambda found: wrong.append(repr(found.exc_value))
pool = [threading.Thread(target=race, args=(root, turns, holders)) for _ in range(threads)]
[thread.start() for thread in pool]
[thread.join() for thread in pool]
print(json.dumps({"holders": holders, "wrong": wrong}))
"""


def start(program: str, *words) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def other(tmp_path):
    """A process that holds the lease `tmp_path`."""
    process = start(HOLD, tmp_path)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_many_processes_of_many_threads(tmp_path):
    leases, turns = 4, 30
    for i in range(leases):
        (tmp_path / f"lease-{i}").mkdir()
    processes = [start(RACE, tmp_path, 6, turns) for _ in range(4)]
    (tmp_path / "go").touch()
    outcomes = [process.communicate(timeout=120) for process in processes]
    assert not any(error for _, error in outcomes), outcomes
    found = [json.loads(text) for text, _ in outcomes]
    assert not any(f["wrong"] for f in found), found
    holders = sorted(holder for f in found for holder in f["holders"])
    assert len(set(holders)) == len(holders), "one number was given twice"
    everything = {f"lease-{i}/{n}" for i in range(leases) for n in range(1, turns + 1)}
    assert set(holders) >= everything and sum(bool(f["holders"]) for f in found) > 1


@pytest.mark.parametrize("gone", ["free", "machine", "process"])
def test_one_of_many_that_wait_takes_over(tmp_path, gone):
    first = lease.claim(tmp_path)
    if gone == "free":
        first.write_text(lease.FREE)
    elif gone == "machine":
        os.utime(first, (0, 0))
    else:
        first.write_text(json.dumps(lease.signature() | {"birth": "0"}))
    barrier = threading.Barrier(32)

    def take(_):
        barrier.wait()
        return lease.claim(tmp_path)

    with ThreadPoolExecutor(32) as pool:
        won = [path for path in pool.map(take, range(32)) if path]
    assert won == [tmp_path / "2"]


def test_a_heart_beats_on_after_a_hiccup_of_the_file_system(tmp_path, monkeypatch):
    path, real, failures = lease.claim(tmp_path), os.listdir, []

    def hiccup(folder):
        if threading.current_thread() is not threading.main_thread() and not failures:
            failures.append(folder)
            raise OSError("stale handle")
        return real(folder)

    monkeypatch.setattr(os, "listdir", hiccup)
    with lease.holding(path, beat=0.02):
        os.utime(path, (0, 0))
        end = time.monotonic() + 20
        while path.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert failures and path.stat().st_mtime > 0


def test_let_go_at_the_end_and_after_an_exception(tmp_path):
    with lease.holding(lease.claim(tmp_path)) as check:
        check()
        assert lease.claim(tmp_path) is None
    with pytest.raises(KeyError), lease.holding(lease.claim(tmp_path)):
        raise KeyError
    assert lease.claim(tmp_path) == tmp_path / "3"


def test_a_living_holder_keeps_it(other, tmp_path):
    before = (tmp_path / "1").stat().st_mtime
    time.sleep(0.2)
    assert lease.claim(tmp_path, stale=2) is None
    assert (tmp_path / "1").stat().st_mtime > before, "no sign of life"
    assert lease.holder(tmp_path).startswith(f"process {other.pid} on ")


def test_killed_holder_is_gone_at_once(other, tmp_path):
    other.kill()
    end = time.monotonic() + 5  # its parent has not asked for its status: a zombie, but dead
    while lease.birth(other.pid) is not None and time.monotonic() < end:
        time.sleep(0.001)
    assert lease.claim(tmp_path, stale=1e9) == tmp_path / "2"


def test_sleeper_has_lost_when_it_wakes(other, tmp_path):
    other.send_signal(signal.SIGSTOP)
    time.sleep(0.4)
    assert lease.claim(tmp_path, stale=60) is None
    assert lease.claim(tmp_path, stale=0.3) == tmp_path / "2"
    other.send_signal(signal.SIGCONT)
    _, error = other.communicate(timeout=5)
    assert f"taken over by process {os.getpid()} on " in error and other.returncode == 1
    assert (tmp_path / "2").read_text() != lease.FREE, (
        "the sleeper freed what was no longer its own"
    )


def test_holder_on_another_machine_is_judged_by_its_silence_alone(tmp_path):
    path = lease.claim(tmp_path)
    path.write_text(
        json.dumps({"host": "far", "pid": 2**22 + 1, "machine": "far away", "birth": "1"})
    )
    assert lease.claim(tmp_path) is None and lease.holder(tmp_path) == f"process {2**22 + 1} on far"
    os.utime(path, (time.time() - lease.STALE - 5,) * 2)
    assert lease.claim(tmp_path) == tmp_path / "2"


def test_unfinished_file_is_held_until_it_is_old(tmp_path):
    (tmp_path / "7").touch()
    assert lease.claim(tmp_path) is None and lease.holder(tmp_path) == "another process"
    os.utime(tmp_path / "7", (0, 0))
    assert lease.claim(tmp_path) == tmp_path / "8"


ODD = {
    "empty": b"",
    "garbage": b"\x00\xff\xfe not a lease",
    "a list": b"[1, 2]",
    "a number": b"17",
    "no fields": b"{}",
    "other fields": b'{"a": 1, "host": "b"}',
    "nested without end": b"[" * 3000,
    "cut off": json.dumps(lease.signature()).encode()[:-5],
    "very long": b"x" * 10**6,
} | {
    f"without {name}": json.dumps(
        {k: v for k, v in lease.signature().items() if k != name}
    ).encode()
    for name in lease.signature()
}
ODD |= {
    f"{name} of another kind: {value!r}": json.dumps(lease.signature() | {name: value}).encode()
    for name, value in (
        ("pid", "1/../1"),
        ("pid", -1),
        ("pid", 10**30),
        ("pid", True),
        ("pid", None),
        ("birth", None),
        ("birth", 1),
        ("host", []),
        ("machine", {}),
    )
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_a_file_that_names_no_holder_is_held_for_moments(tmp_path, content):
    (tmp_path / "7").write_bytes(content)
    assert lease.claim(tmp_path) is None and lease.holder(tmp_path) == "another process"
    os.utime(tmp_path / "7", (time.time() - lease.TAKING - 5,) * 2)
    assert lease.claim(tmp_path) == tmp_path / "8"
    assert lease.holder(tmp_path).startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("content", [b"", json.dumps(lease.signature()).encode()])
def test_a_date_that_no_touch_gave_counts_as_old(tmp_path, content):
    (tmp_path / "7").write_bytes(content)
    for seconds, taken in ((lease.TAKING / 2, None), (86400, tmp_path / "8")):
        os.utime(tmp_path / "7", (time.time() + seconds,) * 2)
        assert lease.claim(tmp_path) == taken


@pytest.mark.parametrize(
    "kind", ["directory", "pipe", "link to nothing", "loop", "link to a lease"]
)
def test_what_is_no_file_holds_nothing(tmp_path, kind):
    path = tmp_path / "7"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a lease":
        (tmp_path / "other").write_text(json.dumps(lease.signature()))
        path.symlink_to(tmp_path / "other")
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "nothing")
    assert lease.holder(tmp_path) == "another process" or kind == "link to a lease"
    assert lease.claim(tmp_path) == tmp_path / "8"
    assert lease.claim(tmp_path) is None


@pytest.mark.parametrize("name", ["\u00b2", "007", "9" * 255, "0", "-1", "1.5", "\u0667"])
def test_names_that_are_no_numbers_of_leases_are_passed_over(tmp_path, name):
    (tmp_path / name).touch()
    assert lease.claim(tmp_path) == tmp_path / "1"
    assert lease.claim(tmp_path) is None


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="no lease can be taken there") as caught:
            lease.claim(folder)
        assert "\n" not in str(caught.value)


def test_a_lease_on_a_full_disk_is_held_by_its_touches(tmp_path, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lease, "signature", full)
        path = lease.claim(tmp_path)
    assert path == tmp_path / "1" and path.read_text() == ""
    assert lease.claim(tmp_path) is None


def test_control_characters_of_a_host_are_not_printed(tmp_path):
    known = lease.signature() | {"host": "a\n\x1b[31mb"}
    (tmp_path / "1").write_text(json.dumps(known))
    assert lease.holder(tmp_path).isprintable()
