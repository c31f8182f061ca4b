"""Code is executed from folders that only this user can change; all else gets one line."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_jax.runtime import cache_directory
from ssl_jax.runtime.cache_directory import is_private_file, private_folder, user_cache

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="modes and owners of POSIX")
NOBODY = 65534
as_root = pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() != 0, reason="only root gives files away"
)


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """The cache of this test, and warnings as in a new process."""
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "a" / "cache"))
    cache_directory._warn.cache_clear()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def make(folder: Path, bits: int = 0o700, owner: int | None = None) -> Path:
    folder.mkdir(parents=True)
    folder.chmod(bits)
    if owner is not None:
        os.chown(folder, owner, owner)
    return folder


def test_what_is_made_is_private(tmp_path, capfd):
    before = os.umask(0o000)
    try:
        folder = private_folder("native")
    finally:
        os.umask(before)
    assert folder == tmp_path / "a" / "cache" / "native"
    assert {mode(place) for place in (folder, folder.parent, folder.parents[1])} == {0o700}
    assert private_folder("native") == folder and capfd.readouterr().err == ""


def test_own_modes_that_keep_others_from_writing_stay(tmp_path, capfd):
    folder = make(tmp_path / "a" / "cache" / "native", 0o755)
    assert private_folder("native") == folder and mode(folder) == 0o755
    assert capfd.readouterr().err == ""


def test_a_link_of_this_user_may_lead_to_the_cache(tmp_path, capfd):
    make(tmp_path / "disk")
    make(tmp_path / "a")
    (tmp_path / "a" / "cache").symlink_to(tmp_path / "disk")
    assert private_folder("native").samefile(tmp_path / "disk" / "native")
    assert capfd.readouterr().err == ""


def test_a_sticky_directory_above_the_cache_is_safe(tmp_path, capfd):
    make(tmp_path / "a", 0o1777)
    assert private_folder("native").parent == tmp_path / "a" / "cache"
    assert capfd.readouterr().err == ""


def everybody_writes(root: Path) -> None:
    make(root, 0o777)


def sticky_but_the_cache_itself(root: Path) -> None:
    make(root, 0o1777)


def a_group_writes(root: Path) -> None:
    make(root / "native", 0o770)


def everybody_writes_above(root: Path) -> None:
    make(root.parent, 0o777)


def a_link_below(root: Path) -> None:
    make(root)
    make(root.with_name("elsewhere"))
    (root / "native").symlink_to(root.with_name("elsewhere"))


def a_link_through_what_everybody_writes(root: Path) -> None:
    make(root.parent)
    open_to_all = make(root.with_name("open"), 0o777)
    make(root.with_name("disk"))
    (open_to_all / "link").symlink_to(root.with_name("disk"))
    root.symlink_to(open_to_all / "link")


def a_file(root: Path) -> None:
    make(root.parent)
    root.write_text("")


def a_loop(root: Path) -> None:
    make(root.parent)
    root.symlink_to(root)


def nobody_owns(root: Path) -> None:
    make(root, 0o1777, NOBODY)


def nobody_owns_above(root: Path) -> None:
    make(root.parent, 0o755, NOBODY)


def nobody_owns_below(root: Path) -> None:
    make(root)
    make(root / "native", 0o755, NOBODY)


def a_link_of_nobody(root: Path) -> None:
    make(root.parent)
    make(root.with_name("disk"))
    root.symlink_to(root.with_name("disk"))
    os.lchown(root, NOBODY, NOBODY)


UNSAFE = [
    everybody_writes,
    sticky_but_the_cache_itself,
    a_group_writes,
    everybody_writes_above,
    a_link_below,
    a_link_through_what_everybody_writes,
    a_file,
    a_loop,
    *(
        pytest.param(attack, marks=as_root)
        for attack in (nobody_owns, nobody_owns_above, nobody_owns_below, a_link_of_nobody)
    ),
]


@pytest.mark.parametrize("attack", UNSAFE)
def test_code_comes_from_elsewhere_with_one_line(attack, tmp_path, capfd):
    attack(tmp_path / "a" / "cache")
    before = sorted(tmp_path.rglob("*"))
    folder = private_folder("native")
    assert not folder.is_relative_to(tmp_path) and private_folder("native") == folder
    assert mode(folder) == mode(folder.parent) == 0o700
    assert folder.stat().st_uid == folder.parent.stat().st_uid == os.geteuid()
    error = capfd.readouterr().err
    assert error.startswith(f"warning: {tmp_path}") and "made anew in" in error, error
    assert error.count("\n") == 1 and sorted(tmp_path.rglob("*")) == before


def test_one_line_serves_all_folders_of_a_cache(tmp_path, capfd):
    everybody_writes(tmp_path / "a" / "cache")
    assert private_folder("native").parent == private_folder("compiled").parent
    assert capfd.readouterr().err.count("\n") == 1


def test_a_directory_of_another_user_is_refused_by_any_user(tmp_path, monkeypatch, capfd):
    make(tmp_path / "a" / "cache")
    weak = cache_directory.weakness(tmp_path / "a" / "cache", tmp_path / "a" / "cache")
    assert weak is None
    monkeypatch.setattr(os, "geteuid", lambda: 1 + os.getuid())
    weak = cache_directory.weakness(tmp_path / "a" / "cache", tmp_path / "a" / "cache")
    assert weak and "belongs to another user" in weak


def test_private_files(tmp_path):
    path = tmp_path / "library.so"
    assert not is_private_file(path)
    path.write_bytes(b"")
    for bits, private in ((0o600, True), (0o755, True), (0o775, False), (0o602, False)):
        path.chmod(bits)
        assert is_private_file(path) == private
    path.chmod(0o600)
    (tmp_path / "link.so").symlink_to(path)
    assert not is_private_file(tmp_path / "link.so") and not is_private_file(tmp_path)


@as_root
def test_a_file_of_another_user_is_not_private(tmp_path):
    path = tmp_path / "library.so"
    path.write_bytes(b"")
    path.chmod(0o600)
    os.chown(path, NOBODY, NOBODY)
    assert not is_private_file(path)


HOMES = {
    "none": {"HOME": "~"},
    "not there": {"HOME": "/nowhere/at/all"},
    "no user of this name": {"XDG_CACHE_HOME": "~nobody-knows"},
}


@pytest.mark.parametrize("environment", HOMES.values(), ids=HOMES)
def test_without_a_home_one_line(environment, monkeypatch, capfd):
    monkeypatch.delenv("SSL_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = user_cache()
    assert mode(folder) == 0o700 and private_folder("native") == folder / "native"
    assert private_folder("compiled") == folder / "compiled"
    error = capfd.readouterr().err
    assert error.startswith("warning: ") and "SSL_JAX_CACHE" in error and error.count("\n") == 1


@as_root
def test_in_the_home_of_another_user_nothing_is_made(tmp_path, monkeypatch, capfd):
    home = make(tmp_path / "theirs", 0o755, NOBODY)
    monkeypatch.delenv("SSL_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))
    assert not private_folder("native").is_relative_to(home) and not list(home.iterdir())
    error = capfd.readouterr().err
    assert f"{home}: is not a home directory of this user" in error and error.count("\n") == 1


def test_the_temporary_directory_goes_with_the_process(tmp_path):
    code = """
from ssl_jax.runtime.cache_directory import private_folder
folder = private_folder("native")
(folder / "code.so").write_text("")
print(folder)
"""
    environment = os.environ | {"SSL_JAX_CACHE": __file__, "TMPDIR": str(make(tmp_path / "tmp"))}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(f"{tmp_path}/tmp/ssl_jax-") and run.stderr.count("\n") == 1
    assert not list((tmp_path / "tmp").iterdir())
