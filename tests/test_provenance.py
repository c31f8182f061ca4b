"""Where a run comes from: commit, command line, parents; whatever git does or does not say."""

import ast
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from ssl_jax.workdir import provenance
from ssl_jax.workdir.directory import begin_workdir, read_json
from ssl_jax.workdir.schema import is_deeper

ROOT = Path(__file__).parent.parent
GIT = shutil.which("git")
needs_git = pytest.mark.skipif(GIT is None, reason="git is not installed")


@pytest.fixture(autouse=True)
def found_out_anew():
    provenance.program.cache_clear()
    yield
    provenance.program.cache_clear()


def git(folder, *words):
    """What git itself says."""
    names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *names, *words], cwd=folder, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    (root / "ssl_jax").mkdir(parents=True)
    (root / "ssl_jax" / "a.py").write_text("a = 1\n")
    (root / "README.md").write_text("text\n")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


@needs_git
def test_commit_and_changes_of_the_program(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "README.md").write_text("other\n")  # no part of the program
    (checkout / "ssl_jax" / "untracked.txt").write_text("\n")
    assert provenance.ask_git(checkout) == (head, False)
    (checkout / "ssl_jax" / "a.py").write_text("a = 2\n")
    assert provenance.ask_git(checkout) == (head, True)


@needs_git
def test_the_environment_of_a_hook_names_no_other_repository(checkout, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(checkout / "nowhere"))
    assert provenance.ask_git(checkout)[1] is False


@needs_git
def test_without_git_the_commit_is_read_from_its_files(checkout):
    def agrees(root=checkout):
        assert provenance.read_head(root) == git(root, "rev-parse", "HEAD")

    agrees()
    git(checkout, "pack-refs", "--all")
    assert not (checkout / ".git" / "refs" / "heads" / "main").exists()
    agrees()
    git(checkout, "worktree", "add", "-q", "-b", "side/branch", "../tree")
    (checkout.parent / "tree" / "ssl_jax" / "a.py").write_text("a = 3\n")
    git(checkout.parent / "tree", "commit", "-q", "-a", "-m", "second")
    agrees(checkout.parent / "tree")
    git(checkout, "checkout", "-q", "--detach")
    agrees()
    assert provenance.read_head(checkout.parent / "tree") != provenance.read_head(checkout)
    (checkout / ".git" / "HEAD").write_text("ref: refs/heads/none\n")
    assert provenance.read_head(checkout) is None


def script(folder, body):
    """Put a program called git first in the path."""
    path = folder / "git"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(
    "body",
    ["exit 128  # what git does in a checkout of another user", "echo '# branch.oid (initial)'"],
)
def test_a_git_that_refuses_says_nothing(tmp_path, monkeypatch, body):
    monkeypatch.setenv("PATH", script(tmp_path, body))
    assert provenance.ask_git(tmp_path) == (None, None)


def test_git_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.ask_git(tmp_path) == (None, None)


def test_a_git_that_hangs_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PATIENCE", 0.3)
    body = f"(sleep 1; touch {tmp_path}/late) & sleep 60"
    monkeypatch.setenv("PATH", script(tmp_path, body))
    began = time.monotonic()
    assert provenance.ask_git(tmp_path) == (None, None)
    assert time.monotonic() - began < 3
    time.sleep(1.2)
    assert not (tmp_path / "late").exists()


def test_an_installed_package_has_a_version_and_no_commit(tmp_path, monkeypatch):
    """A virtual environment may lie in a checkout of something else."""
    inner = tmp_path / "env" / "site-packages" / "ssl_jax" / "workdir" / "provenance.py"
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(inner))
    monkeypatch.setattr(provenance, "ask_git", lambda root: pytest.fail("was asked"))
    assert provenance.program()["commit"] is None


def test_the_command_is_what_a_shell_takes():
    words = ["launch.py", "--config", "a b.py", "--config.x=it's"]
    with provenance.started_by(words):
        assert provenance.command() == "python launch.py --config 'a b.py' '--config.x=it'\"'\"'s'"
    for first, spelled in (
        ("ssl-jax", "ssl-jax"),
        ("/home/somebody/env/bin/ssl-jax", "ssl-jax"),
        ("/home/somebody/env/lib/ssl_jax/__main__.py", "python -m ssl_jax"),
        ("/home/somebody/clone/launch.py", "python /home/somebody/clone/launch.py"),
        ("ssl_jax.train", "ssl_jax.train"),
    ):
        with provenance.started_by([first, "--workdir", "runs/x"]):
            assert provenance.provenance()["command"] == f"{spelled} --workdir runs/x"


def at(monkeypatch, commit, changed=False):
    start = {"commit": commit, "changed": changed, "version": "1"}
    monkeypatch.setattr(provenance, "program", lambda: start)


def test_a_run_keeps_its_first_start_and_every_other_commit(tmp_path, monkeypatch):
    parent = {"path": "w", "step": 3, "sha256": "00", "provenance": None}
    for commit, changed, parents in (
        ("a" * 40, False, [parent]),
        ("a" * 40, False, None),
        ("b" * 40, False, None),
        ("b" * 40, True, None),
        ("a" * 40, False, None),
    ):
        at(monkeypatch, commit, changed)
        with provenance.started_by([commit[0], str(changed)]):
            begin_workdir(tmp_path, {"task": "x"}, parents)
    content = provenance.stated(tmp_path)
    assert (content["commit"], content["command"]) == ("a" * 40, "a False")
    assert content["parents"] == [parent]
    assert [(start["commit"][0], start["changed"]) for start in content["later"]] == [
        ("b", False),
        ("b", True),
    ]


def test_a_run_of_before_there_was_any_has_an_unknown_first_start(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    at(monkeypatch, "a" * 40)
    begin_workdir(tmp_path, {"task": "x"}, None)
    content = provenance.stated(tmp_path)
    assert content["commit"] is None and [s["commit"] for s in content["later"]] == ["a" * 40]


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"command": 3}', b"[" * 100_000])
def test_a_damaged_file_is_kept_beside(tmp_path, content, capsys):
    (tmp_path / provenance.NAME).write_bytes(content)
    begin_workdir(tmp_path, {"task": "x"})
    assert (tmp_path / "provenance.damaged.json").read_bytes() == content
    assert provenance.stated(tmp_path)["command"]
    assert "damaged" in capsys.readouterr().err


def test_what_others_state_is_taken_by_its_types(tmp_path):
    stated = {
        "commit": 7,
        "changed": "no",
        "command": "x" * 10**5,
        "parents": [{"path": ["a"], "step": 1.5, "sha256": {}, "provenance": "none"}, 3],
        "later": [{"command": "y", "commit": "c"}, None],
        "more": 1,
    }
    (tmp_path / "result.json").write_text(json.dumps({"provenance": stated}))
    got = provenance.stated(tmp_path)
    assert (got["commit"], got["changed"], len(got["command"])) == (None, None, provenance.LONGEST)
    assert got["parents"] == [{"path": "['a']", "step": None, "sha256": None, "provenance": None}]
    assert [start["commit"] for start in got["later"]] == ["c"] and "more" not in got
    assert provenance.stated(tmp_path / "none") is None


def test_many_generations_stay_readable(tmp_path):
    """A result that nests deeper than `schema.DEEPEST` would be refused by its own reader."""
    folder = tmp_path / "0"
    begin_workdir(folder, {"task": "x"})
    for i in range(1, 25):
        before, folder = folder, tmp_path / str(i)
        begin_workdir(folder, {"task": "x"}, [provenance.parent(before, i, None)])
    assert not is_deeper({"provenance": read_json(folder / provenance.NAME)})
    (entry,) = provenance.stated(folder)["parents"]
    assert entry["step"] == 24 and entry["provenance"]["parents"][0]["step"] == 23


def test_a_loose_file_belongs_to_no_folder(tmp_path):
    begin_workdir(tmp_path, {"task": "x"})
    for name, known in (("model.safetensors", True), ("resnet.safetensors", False)):
        (tmp_path / name).write_bytes(b"x")
        entry = provenance.parent(tmp_path / name, None, provenance.sha256_of(tmp_path / name))
        assert (entry["provenance"] is not None) == known
        # of "x", by sha256sum
        assert entry["sha256"][:16] == "2d711642b726b044"


def test_every_result_states_its_provenance():
    """No module writes a result.json but through `result_json.write`."""
    wrong = []
    for path in sorted((ROOT / "ssl_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and "result.json" in ast.unparse(node):
                if ast.unparse(node.func).split(".")[-1] in ("write_json", "write_whole"):
                    wrong.append(f"{path.name}, line {node.lineno}")
    assert wrong == []
