"""Every section of docs/contributing.md, followed as it is written on a copy of the repository."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, TINY

from ssl_jax.workdir.metrics_csv import read_rows

COPIED = ("ssl_jax", "configs", "tests", "launch.py", "pyproject.toml")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections() -> dict[str, str]:
    """Title and text of the worked examples."""
    parts = re.split(
        r"^## (Add .*)\n", (ROOT / "docs" / "contributing.md").read_text(), flags=re.MULTILINE
    )
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def copy_to(folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)


def add(code: str, folder: Path) -> None:
    """Adds `code` to the end of the file that its first line names, which is made if it is not
    there.
    """
    first, _, rest = code.partition("\n")
    named = re.fullmatch(r"# ([\w/]+\.py)", first)
    assert named, f"the block does not begin with the name of its file: {first}"
    path = folder / named[1]
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() + "\n\n" if path.exists() else "") + rest)


def run(command: str, folder: Path) -> str:
    """What a line of a bash block prints; the quickstart's runs are made tiny."""
    words = shlex.split(command)
    assert words[0] == "python", command
    if "configs/quickstart.py" in words:
        words += TINY
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    for name in ("XLA_FLAGS", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_has_examples():
    things = ("a predictor", "an objective", "a task", "a data source", "an experiment")
    assert list(sections()) == [f"Add {thing}" for thing in (*things, "a recorder")]


# In the place of the package: the calls of the example, and what they are called with.
WANDB = """
import json
import pathlib

Image = str
lines = []


class Run:
    id, summary = "abc", {}

    def log(self, row, step):
        lines.append([step, row])

    def finish(self):
        kept = {"began": self.began, "rows": lines, "summary": self.summary}
        pathlib.Path("sent.json").write_text(json.dumps(kept))


def init(id=None, resume=None, name=None, config=None):
    Run.began = [id, resume, name, config["method"]]
    return Run()
"""


@pytest.mark.slow
def test_weights_and_biases_gets_the_numbers_of_metrics_csv(tmp_path):
    copy_to(tmp_path)
    (tmp_path / "wandb.py").write_text(WANDB)
    *blocks, (_, command) = BLOCK.findall(sections()["Add a recorder"])
    for _, code in blocks:
        add(code, tmp_path)
    assert len([line for line in blocks[0][1].splitlines() if line.strip()]) < 25
    out = tmp_path / "runs" / "recorded"
    for known in (None, "abc"):
        run(command, tmp_path)
        sent = json.loads((tmp_path / "sent.json").read_text())
        assert sent["began"] == [known, "allow", "recorded", "byol"]
        assert "figures/training" in sent["summary"]
        if known is None:
            rows = read_rows(out / "metrics.csv")
            whole = [[r["step"], {n: v for n, v in r.items() if v == v}] for r in rows]
            assert sent["rows"] == whole and len(rows) > 3
        else:  # nothing was left to train
            assert sent["rows"] == []


@pytest.mark.slow
@pytest.mark.parametrize("title", [title for title in sections() if title != "Add a recorder"])
def test_worked_example(title, tmp_path):
    copy_to(tmp_path)
    blocks = BLOCK.findall(sections()[title])
    assert {language for language, _ in blocks} == {"python", "bash"}
    for language, code in blocks:
        if language == "python":
            add(code, tmp_path)
        else:
            for command in code.splitlines():
                printed = run(command, tmp_path)
                assert "pytest" not in command or re.search(r"\d+ passed", printed), printed
    assert list(tmp_path.glob("runs/*/result.json")), "the last command is a run that ends"
