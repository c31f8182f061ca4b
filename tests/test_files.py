"""A file appears whole or not at all, never through a link; what fails is one line."""

import errno
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from ssl_jax import files
from ssl_jax.builders import fields
from ssl_jax.errors import UserError
from ssl_jax.tasks import registry

ROOT = Path(__file__).parent.parent


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


def test_a_file_that_is_streamed_appears_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
        file.write(b"half of")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with files.replacing(path) as file:
        file.write(b"now")
        scratch = [p.name for p in tmp_path.iterdir() if p != path]
        assert path.read_text() == "before"
    assert path.read_text() == "now" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert len(scratch) == 1 and files.SCRATCH.fullmatch(scratch[0])


def test_what_a_killed_writer_left_is_deleted_and_nothing_else(tmp_path):
    names = ["a.txt", ".tmp", f".{31 * 'a'}.tmp", f"{32 * 'a'}.tmp", f".{32 * 'a'}.tmp2", ".A.tmp"]
    code = f"""
import os
from pathlib import Path
from ssl_jax import files
with files.replacing(Path({str(tmp_path / "a.txt")!r})) as file:
    file.write(b"half")
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT)
    assert len(list(tmp_path.iterdir())) == 1
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f".{32 * 'f'}.tmp").mkdir()
    files.delete_scratch(tmp_path)
    kept = [*names, f".{32 * 'f'}.tmp"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)
    files.delete_scratch(tmp_path / "missing")


def test_room_is_asked_for_before(tmp_path):
    files.require_space(tmp_path / "not" / "yet", 1)
    says = "no space left: 1,000,000,000,000,000 bytes needed, [0-9,]+ free"
    with pytest.raises(OSError, match=says) as refusal:
        files.require_space(tmp_path / "not", 10**15)
    assert refusal.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=f"not: cannot be written .{says}.; free some space"):
        with files.writing(tmp_path / "not"):
            files.require_space(tmp_path / "not", 10**15)


def test_sizes_in_words():
    assert [files.size(n) for n in (7, 999, 12_345, 5 * 10**9)] == [
        "7 bytes",
        "999 bytes",
        "12.3 kB",
        "5 GB",
    ]


NO_PATHS = {
    "gs://bucket/run": "got the URL 'gs://bucket/run'",
    "s3://b": "the URL",
    "file:///tmp/x": "the URL",
    "a\nb": "without control characters",
    "a\0b": "without control characters",
    "x/" + 300 * "n": "a name of 300; ",
    150 * "ä": "a name of 300; ",
    "d/" * 3000: "6000 bytes with a name of 1; ",
    "~nobody-of-this-name/x": "'~nobody-of-this-name' is no user",
    "\ud800": "cannot spell",
}


@pytest.mark.parametrize("text, complaint", NO_PATHS.items(), ids=map(ascii, range(len(NO_PATHS))))
def test_what_can_be_no_local_path_is_one_line(text, complaint):
    with pytest.raises(UserError) as caught:
        files.local_path("checkpoint", text)
    message = str(caught.value)
    assert message.startswith("checkpoint: got ") and complaint in message, message
    assert "\n" not in message and "\0" not in message and len(message) < 800
    message.encode()


def test_home_is_spelt_out_and_all_else_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert files.local_path("f", "~/a/../b") == "/home/of/mine/a/../b"
    assert files.local_path("f", "~") == "/home/of/mine"
    for text in ("", "a~", "./~x", "/a b/c", "gs:/a", "a://b:c"[1:], 255 * "n", "ü", "\udce4"):
        assert files.local_path("f", text) == text


def test_every_path_of_a_configuration_passes_the_boundary(monkeypatch, tmp_path):
    """Fields of all configurations whose comments or names say that they are paths."""
    monkeypatch.setenv("HOME", "/home/of/mine")
    seen = set()
    for name in (
        "defaults",
        "supervised",
        "probe",
        "doctor",
        "dynamics",
        "report",
        "sweeps/table1",
    ):
        config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
        for field in registry.flatten(config.to_dict()):
            last = field.rpartition(".")[2]
            if last not in (*fields.PATHS, *fields.SEVERAL_PATHS):
                continue
            seen.add(field)
            changed = config.copy_and_resolve_references()
            changed.update_from_flattened_dict({field: "~/a"})
            local = fields.with_local_paths(changed)
            assert registry.flatten(local.to_dict())[field] == "/home/of/mine/a"
            assert registry.flatten(changed.to_dict())[field] == "~/a", "the caller's own changed"
            changed.update_from_flattened_dict({field: "gs://a"})
            with pytest.raises(UserError, match=f"^{field}: got the URL"):
                registry.run_task(changed, str(tmp_path / "out"), lambda: False)
    assert seen >= {"data.data_dir", "data_dir", "checkpoint", "run", "runs", "weights", "store"}
    assert "full.data.data_dir" in seen and not list(tmp_path.iterdir())
    runs = ConfigDict({"runs": "~/a, b,~"})
    assert fields.with_local_paths(runs).runs == "/home/of/mine/a,b,/home/of/mine"
    with pytest.raises(UserError, match="^--workdir: got the URL"):
        registry.run_task(config, "gs://bucket/run", lambda: False)
