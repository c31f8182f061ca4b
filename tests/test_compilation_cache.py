"""Compiled programs are kept in the user's cache, unless that is off or impossible."""

import os
import time

import jax
import numpy as np
import pytest
from commands import TINY, finish_command, last_parameters, start_command

from ssl_jax.runtime.compilation_cache import delete_oldest, enable_compilation_cache

FIELDS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def as_the_user_starts(tmp_path, monkeypatch):
    """JAX's own defaults, and a cache directory for this test alone. Nothing may be compiled in
    between.
    """
    before = {name: getattr(jax.config, name) for name in FIELDS}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def kept_in():
    return jax.config.jax_compilation_cache_dir


def test_on_by_default_and_small_programs_too(tmp_path):
    enable_compilation_cache()
    assert kept_in() == str(tmp_path / "cache" / "compiled") and os.path.isdir(kept_in())
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_the_users_cache_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    enable_compilation_cache()
    assert kept_in() == str(tmp_path / "home" / "ssl_jax" / "compiled")


def test_switched_off(tmp_path):
    jax.config.update("jax_enable_compilation_cache", False)
    enable_compilation_cache()
    assert kept_in() is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("own", ["", "elsewhere"])
def test_jax_own_settings_win(own, tmp_path):
    jax.config.update("jax_compilation_cache_dir", own)
    enable_compilation_cache()
    assert kept_in() == own and not list(tmp_path.iterdir())
    assert jax.config.jax_persistent_cache_min_compile_time_secs > 0


def test_jax_own_threshold_wins(monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    enable_compilation_cache()
    assert kept_in() and jax.config.jax_persistent_cache_min_compile_time_secs > 0


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capfd):
    (tmp_path / "cache").write_text("a file")
    enable_compilation_cache()
    error = capfd.readouterr().err
    assert not kept_in().startswith(str(tmp_path)) and os.stat(kept_in()).st_mode & 0o777 == 0o700
    assert error.startswith(f"warning: {tmp_path}/cache") and error.count("\n") == 1, error


def test_programs_that_others_can_write_are_not_executed(tmp_path):
    folder = tmp_path / "cache" / "compiled"
    folder.mkdir(parents=True)
    for name in ("own", "shared"):
        (folder / name).write_bytes(b"")
    (folder / "own").chmod(0o644)
    (folder / "shared").chmod(0o664)
    (folder / "link").symlink_to(folder / "own")
    (folder / "dangling").symlink_to(folder / "nothing")
    enable_compilation_cache()
    assert kept_in() == str(folder) and [p.name for p in folder.iterdir()] == ["own"]


def test_programs_made_under_any_umask_are_kept(tmp_path):
    """JAX leaves the modes of its files to the umask; a closed folder keeps the group from them."""
    enable_compilation_cache()
    folder = tmp_path / "cache" / "compiled"
    (folder / "own").write_bytes(b"")
    (folder / "own").chmod(0o664)
    jax.config.update("jax_compilation_cache_dir", None)
    enable_compilation_cache()
    assert [p.name for p in folder.iterdir()] == ["own"] and folder.stat().st_mode & 0o777 == 0o700


def test_trim_keeps_the_newest(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (time.time(), time.time() - age))
    delete_oldest(tmp_path, 40)
    assert len(list(tmp_path.iterdir())) == 4
    delete_oldest(tmp_path, 25)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.slow
def test_second_start_compiles_nothing_and_ends_in_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    fields = [*TINY, "--config.epochs=1"]
    finish_command(start_command(tmp_path / "first", *fields))
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "compiled").iterdir()}
    assert len(kept) > 10
    finish_command(start_command(tmp_path / "second", *fields))
    assert {
        p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "compiled").iterdir()
    } == kept
    first, second = last_parameters(tmp_path / "first"), last_parameters(tmp_path / "second")
    assert first.keys() == second.keys() and len(first) > 10
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
