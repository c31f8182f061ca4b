"""A file appears whole or not at all, never through a link; what fails is one line."""

import errno
import os

import pytest

from ssl_jax import files
from ssl_jax.errors import UserError


def test_written_whole(tmp_path):
    path = tmp_path / "a.txt"
    files.write_whole(path, "ä")
    assert path.read_bytes() == "ä".encode()
    files.write_whole(path, b"two")
    assert path.read_bytes() == b"two" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_what_was_there_stays_where_the_disk_refuses(tmp_path, monkeypatch, function, code):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(UserError) as refusal:
        files.write_whole(path, b"x" * 12_345)
    line = str(refusal.value)
    assert line.startswith(f"{path}: cannot be written ({os.strerror(code)})")
    assert ("needs 12.3 kB" in line) == (code != errno.EROFS)
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("write", [files.write_whole, files.append])
def test_never_through_a_link(tmp_path, write):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    path = tmp_path / "run.csv"
    path.symlink_to(mine)
    if write is files.append:
        with pytest.raises(UserError, match="run.csv: cannot be written"):
            write(path, "row")
    else:
        write(path, "row")
        assert path.read_text() == "row" and not path.is_symlink()
    assert mine.read_text() == "mine"
    (tmp_path / "figures").symlink_to(tmp_path)
    with pytest.raises(UserError, match="figures: is a link"):
        files.make_folder(tmp_path / "figures")


def test_half_a_row_is_taken_back(tmp_path, monkeypatch):
    """The disk takes three bytes of a row, and then no more."""
    path, write, given = tmp_path / "m.csv", os.write, []
    files.append(path, "1,2\n")

    def fill(file, content):
        if given:
            raise OSError(errno.ENOSPC, "No space left on device")
        given.append(1)
        return write(file, content[:3])

    monkeypatch.setattr(os, "write", fill)
    with pytest.raises(UserError, match="needs 4 bytes"):
        files.append(path, "3,4\n")
    assert path.read_text() == "1,2\n"


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda path: None, "not found"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (os.mkfifo, "is not a file"),  # would wait for ever
        (lambda path: path.write_bytes(b"\xff\xfe"), "damaged, not text"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, make, says):
    make(tmp_path / "a")
    with pytest.raises(UserError, match=f"a: {says}.*; expected a letter$"):
        files.read_text(tmp_path / "a", "a letter")


def test_damaged_files_are_all_kept(tmp_path):
    names = []
    for content in ("one", "two", "three"):
        (tmp_path / "m.csv").write_text(content)
        names.append(files.keep_beside(tmp_path / "m.csv").name)
    assert names == ["m.damaged.csv", "m.damaged.1.csv", "m.damaged.2.csv"]
    assert [(tmp_path / name).read_text() for name in names] == ["one", "two", "three"]


def test_room_is_asked_for_before(tmp_path):
    files.require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(UserError, match="not: needs 1e\\+03 TB, .* are free"):
        files.require_space(tmp_path / "not", 10**15)


def test_sizes_in_words():
    assert [files.size(n) for n in (7, 999, 12_345, 5 * 10**9)] == [
        "7 bytes",
        "999 bytes",
        "12.3 kB",
        "5 GB",
    ]
