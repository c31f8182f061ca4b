"""README.md, the pages and the cards name no file, field or module that does not exist. Commands:
test_launch.py.
"""

import importlib.util
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from commands import ROOT

from ssl_jax.builders.configurations import known_configs
from ssl_jax.builders.fields import flat
from ssl_jax.workdir.directory import flatten

PAGES = [
    path
    for path in (
        ROOT / "README.md",
        ROOT / "benchmarks" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    )
    if path.parent.name != "api"  # written when the site is built
]
CARDS = sorted((ROOT / "configs").rglob("*.py"))
# What a command makes, and what stands for a name.
MADE = re.compile(
    r"^(runs|site|DIR|docs/api)\b|NAME|METHOD|MODEL|TABLE|SWEEP|SCALE|CELL|FOLDER|seed-N|[*…$<{]"
)
FOLDERS = ("ssl_jax", "configs", "tests", "docs", "benchmarks", "results", ".ci")
# Paths that stand for modules of ssl_jax, as in "`train/pretrain`".
INSIDE = tuple(
    path.name
    for path in (ROOT / "ssl_jax").iterdir()
    if path.is_dir() and path.name != "__pycache__"
)


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def every_field() -> set[str]:
    fields: set[str] = set()
    for name in known_configs():
        fields |= set(flat(runpy.run_path(str(ROOT / name))["get_config"]()))
    return fields


FIELDS = every_field()
RESULT = json.loads((ROOT / "results" / "table1" / "mini" / "byol" / "seed-0.json").read_text())
# of result.json, whose section is called like a field's
FIELDS |= set(flatten({"dynamics": RESULT["dynamics"]}))
SECTIONS = {field.rpartition(".")[0] for field in FIELDS if "." in field}


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def quoted(text: str) -> list[str]:
    """What stands between backticks, outside of blocks of code."""
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def missing_paths(text: str, folder: Path) -> list[str]:
    """Paths in `text` (between backticks, in links, in commands) that do not exist; links are
    relative to `folder`.
    """
    missing = []
    # by a block of code that begins with its name
    made = re.findall(r"^# ([\w/]+\.py)$", text, re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"https?:", target) and not (folder / target).exists():
            missing.append(target)
    words = [word for phrase in quoted(text) for word in phrase.split()]
    words += [
        word
        for line in text.splitlines()
        if re.match(r"(\.venv/bin/)?python ", line)
        for word in line.split()
    ]
    for word in words:
        path = word.split("=")[-1].split(":")[0].rstrip(",.;")
        if "/" not in path or MADE.search(path) or path in made:
            continue
        first = path.split("/")[0]
        if first in FOLDERS and not (ROOT / path).exists():
            missing.append(path)
        elif first in INSIDE and not any(
            (ROOT / place / f"{path}{end}").exists()
            for place, end in (("ssl_jax", ""), ("ssl_jax", ".py"), ("configs", ".py"))
        ):
            missing.append(path)
    return missing


def unknown_fields(text: str) -> list[str]:
    """Fields that are set or named in `text`, and are of no configuration."""
    named = re.findall(r"--(?:no)?config\.([\w.]+\w)", text)
    for phrase in quoted(text):
        # `section.field`, `field=value` of a section: only what begins like a section is one.
        match = re.fullmatch(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:=.*)?", phrase)
        if (
            match
            and match[1].split(".")[0] in SECTIONS
            and not re.search(r"\.(py|md|png|json|npz|stablehlo)$", match[1])
        ):
            named.append(match[1])
    placeholders = ("section.field", "FIELD")
    return [
        field
        for field in named
        if field not in FIELDS | SECTIONS and field not in placeholders and field[0] != "."
    ]


def missing_modules(text: str) -> list[str]:
    """Modules of `python -m ssl_jax…` that are not there."""
    modules = re.findall(r"python -m (ssl_jax[\w.]+\w)", text)
    return [name for name in modules if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("path", [*PAGES, *CARDS], ids=names)
def test_names_what_exists(path):
    text = path.read_text()
    assert missing_paths(text, path.parent) == []
    assert unknown_fields(text) == []
    assert missing_modules(text) == []


def test_the_checks_can_fail():
    assert missing_paths(
        "see `ssl_jax/nothing.py`, [here](docs/none.md), `train/nothing`", ROOT
    ) == [
        "docs/none.md",
        "ssl_jax/nothing.py",
        "train/nothing",
    ]
    assert missing_paths("```bash\npython benchmarks/none.py --quick\n```", ROOT) == [
        "benchmarks/none.py"
    ]
    assert unknown_fields("`optimizer.decy=pre`, --config.data.dir=DIR") == [
        "data.dir",
        "optimizer.decy",
    ]
    assert missing_modules("python -m ssl_jax.reports.none") == ["ssl_jax.reports.none"]


@pytest.mark.parametrize("path", PAGES, ids=names)
def test_python_blocks_are_python(path):
    for language, code in re.findall(
        r"^```(\S*)[^\n]*\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL
    ):
        if language in ("python", "{code-cell}"):
            cell = re.sub(r"^:tags:.*\n", "", code)
            compile(cell, names(path), "exec")
        elif language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                shlex.split(line, comments=True)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 6 * 1024


def test_every_page_is_in_the_site():
    index = (ROOT / "docs" / "index.md").read_text().splitlines()
    for path in (ROOT / "docs").rglob("*.md"):
        page = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert page == "index" or page in index or page.startswith("api/"), page
