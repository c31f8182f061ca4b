"""A module imports only from floors below its own, and, inside one folder, from that folder's files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The first prefix that fits a module decides; what is not named here fails the test.
FLOORS = {
    "ssl_jax.errors": -1,
    "ssl_jax.types": -1,
    "ssl_jax.places": -1,
    "ssl_jax.linalg": 0,
    "ssl_jax.losses": 0,
    "ssl_jax.augment.views": 1,
    "ssl_jax.augment.labelled": 1,
    "ssl_jax.augment": 0,
    "ssl_jax.models.": 0,
    "ssl_jax.models": 1,
    "ssl_jax.optim.": 0,
    "ssl_jax.optim": 1,
    "ssl_jax.predictors": 1,
    "ssl_jax.dynamics": 1,
    "ssl_jax.data": 2,
    "ssl_jax.train.loop": 3,
    "ssl_jax.train": 2,
    "ssl_jax.probes": 3,
    "ssl_jax.reports": 4,
    "ssl_jax.assembly": 4,
    "ssl_jax.console": 4,
    "ssl_jax.checks": 5,
    "ssl_jax.compiled": 0,
    "ssl_jax.judge": 5,
    "ssl_jax.records": 5,
    "ssl_jax.driver": 6,
    "ssl_jax.classify": 7,
    "ssl_jax.experiments": 8,
    "ssl_jax.theory_figures": 6,
    "ssl_jax.dynamics_figures": 6,
    "ssl_jax.checkup": 6,
    "ssl_jax.report": 6,
    "ssl_jax.sweep": 8,
    "ssl_jax.workdir": 2,
    "ssl_jax.runs": 9,
    "ssl_jax": 0,
}
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted((ROOT / "ssl_jax").rglob("*.py"))
}


def floor(module: str) -> int:
    fits = [name for name in FLOORS if module == name or module.startswith(name.rstrip(".") + ".")]
    assert fits, f"{module} stands on no floor: name it in FLOORS"
    return FLOORS[max(fits, key=len)]


def folder(module: str) -> str:
    return ".".join(module.split(".")[:2])


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return {name for name in found if name.split(".")[0] in ("ssl_jax", "configs", "launch")}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    for imported in imports_of(MODULES[module]):
        assert imported in MODULES, f"{module} imports {imported}, which is above every floor"
        below = floor(imported) < floor(module)
        assert below or folder(imported) == folder(module), f"{module} imports {imported}, which is not below it"


def test_the_rule_can_fail():
    assert floor("ssl_jax.runs") > floor("ssl_jax.train.pretrain") > floor("ssl_jax.losses")
    assert imports_of(MODULES["ssl_jax.train.pretrain"]) >= {"ssl_jax.losses", "ssl_jax.predictors"}
