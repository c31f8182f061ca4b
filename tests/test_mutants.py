"""The mutants made by machine: what is changed, what is left alone, and what becomes of them."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "benchmarks" / "mutants.py"


@pytest.fixture
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module  # where a NamedTuple looks for itself
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutants"]


@pytest.mark.parametrize(
    "code, changes",
    [
        ("f(3)", {"f(4)", "f((2))"}),
        ("f(0.5)", {"f(0.625)", "f(0.4)"}),
        ("f(0.0)", {"f(1.0)", "f(-1.0)"}),
        ("f(True)", {"f(False)"}),
        ("f(a < b)", {"f((a <= b))", "f((a >= b))"}),
        ("f(a is None)", {"f((a is not None))"}),
        ("f(a + b)", {"f(((a) - (b)))", "f((a))", "f((b))"}),
        ("f(a @ b)", set()),
        ("f(a & b)", {"f(((a) | (b)))"}),
        ("Value = int | None", set()),
        ("f(a ** b)", {"f(((a) * (b)))"}),
        ("f(not a)", {"f((a))"}),
        ("f(-a)", {"f((a))"}),
        ("f(a and b)", {"f(((a) or (b)))", "f(((b)))", "f(((a)))"}),
        ("f(a if c else b)", {"f((a))", "f((b))"}),
        ("f('ä', a % b)", {"f('ä', ((a) * (b)))"}),  # offsets count bytes
        # what decides nothing
        ("raise UserError(f'{1 + 2}')", set()),
        ("x = f'{1:.3f}'", set()),
        ("x: f[3]", set()),
        ("def f(x: g[3]) -> g[4]: ...", set()),
        ("'a docstring of 3 lines'", set()),
    ],
)
def test_changes(mutants, code, changes):
    found = list(mutants.mutants_of("a.py", code))
    assert {mutants.mutated(code, mutant) for mutant in found} == changes
    for mutant in found:
        ast.parse(mutants.mutated(code, mutant))
    assert len({mutant.name for mutant in found}) == len(found)


def test_a_change_keeps_the_rest_of_the_file(mutants):
    code = "# é\nx = 1\ny = [a +\n  b]\n# 2\n"
    found = {mutants.mutated(code, mutant) for mutant in mutants.mutants_of("a.py", code)}
    assert "# é\nx = 2\ny = [a +\n  b]\n# 2\n" in found
    assert "# é\nx = 1\ny = [(a)]\n# 2\n" in found


@pytest.fixture
def small(mutants, tmp_path, monkeypatch):
    """A repository whose package has three files and whose tests see some faults of two of them."""
    files = {
        "ssl_jax/__init__.py": "",
        "ssl_jax/optim/__init__.py": "from ssl_jax.optim.held import double\n",
        "ssl_jax/optim/held.py": "def double(x):\n    return 2 * x\n",
        "ssl_jax/optim/user.py": "from ssl_jax.optim import held, lax\n",
        "ssl_jax/optim/lax.py": "LARGEST = 7\n",
        "ssl_jax/optim/alone.py": "NOBODY = True\n",
        "tests/test_double.py": (
            "from ssl_jax.optim import double\n\ndef test_it():\n    assert double(3) == 6\n"
        ),
        "tests/test_user.py": (
            "from ssl_jax.optim import user\n\ndef test_it():\n    assert user.lax.LARGEST > 0\n"
        ),
    }
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    subprocess.run(["git", "init", "-q", tmp_path / "root"], check=True)
    monkeypatch.setattr(mutants, "ROOT", tmp_path / "root")
    return tmp_path


def test_tests_of_a_file_import_it_or_what_imports_it(mutants, small):
    tests = mutants.Tests(most=2)
    assert tests.of("ssl_jax/optim/held.py") == ["tests/test_double.py", "tests/test_user.py"]
    assert tests.of("ssl_jax/optim/lax.py") == ["tests/test_user.py"]
    assert tests.of("ssl_jax/optim/alone.py") == []
    assert mutants.Tests(most=1).of("ssl_jax/optim/held.py") == ["tests/test_double.py"]


def run(mutants, small, monkeypatch, *arguments):
    out = small / "found.json"
    monkeypatch.setattr(sys, "argv", ["mutants.py", f"--out={out}", "--folders=optim", *arguments])
    mutants.main()
    return json.loads(out.read_text())["optim"]


def test_outcomes_are_counted_kept_and_not_made_twice(mutants, small, monkeypatch, capsys):
    found = run(mutants, small, monkeypatch)
    assert {(row["file"][14:], row["after"], row["outcome"]) for row in found["survivors"]} == {
        ("lax.py", "8", "survived"),
        ("lax.py", "(6)", "survived"),
        ("alone.py", "False", "no tests"),
    }
    # 2 -> 3, 2 -> 1, / and either factor alone
    assert (found["mutants"], found["killed"], found["share"]) == (8, 5, 0.625)
    assert "return 2 * x" in (small / "root/ssl_jax/optim/held.py").read_text()
    capsys.readouterr()
    assert run(mutants, small, monkeypatch) == found
    assert " killed " not in capsys.readouterr().out.replace("of 8 killed", "")


def test_a_sample_is_of_its_size_and_the_same_again(mutants, small):
    chosen = mutants.choose(["optim"], 3, seed=0)
    assert len(chosen) == 3 and chosen == mutants.choose(["optim"], 3, seed=0)
    assert len(mutants.choose(["optim"], 0, seed=0)) == 8


def test_tests_that_fail_by_themselves_end_it(mutants, small, monkeypatch):
    (small / "root/tests/test_double.py").write_text(
        "from ssl_jax.optim import double\n\ndef test_it():\n    assert double(3) == 7\n"
    )
    with pytest.raises(SystemExit, match="test_double.py: failed without any mutant"):
        run(mutants, small, monkeypatch)
