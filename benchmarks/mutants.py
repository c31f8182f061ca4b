"""How many small faults in the code the tests notice: mutants made by machine, killed or survived.

    python benchmarks/mutants.py --out mutants.json [--sample 60] [--folders optim,probes]

A mutant is one file of the package with one change: a number, a comparison, an operator, a `not`, a
term. The tests that import the file run on a copy of the repository, the most specific ones first,
until one fails. A mutant that outlasts them has survived: either a test is missing, or the change
changes nothing.

Each mutant is a line in FILE.jsonl beside the results as soon as it is done. The same command goes
on from there. Without --sample all mutants run, some thousands of them, for days on two cores.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ssl_jax"
FOLDERS = ("optim", "predictors", "losses", "augment", "probes", "dynamics", "train")
COMPARISONS: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Pow: "*",
    ast.BitAnd: "|",  # not the other way round: | also joins types and dicts
}
WITH_TERMS = (ast.Add, ast.Sub, ast.Mult, ast.Div)


class Mutant(NamedTuple):
    """One change of one file."""

    file: str  # relative to the root
    line: int  # the first line that changes, from 1
    start: int  # offset in bytes of what is replaced
    end: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """A key of the results: the change and its place, without the file's other lines."""
        text = f"{self.file} {self.line} {self.start} {self.before} {self.after}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- Mutants --------------------------------------------------------------------------------------


def mutants_of(file: str, source: str) -> Iterator[Mutant]:
    """Yield the mutants of a file, in the order of the text."""
    lines = source.encode().splitlines(keepends=True)
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    raw = source.encode()
    for node in _nodes(ast.parse(source)):
        start = offsets[node.lineno - 1] + node.col_offset
        end = offsets[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        for after in dict.fromkeys(_changes(node)):
            yield Mutant(file, node.lineno, start, end, raw[start:end].decode(), after)


def _nodes(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions that decide what the code computes.

    Annotations, messages of errors, text and the names of `__all__` are left out.
    """
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.expr):
        yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _nodes(child)


def _changes(node: ast.expr) -> Iterator[str]:
    """Yield the texts that take the place of the expression."""
    match node:
        case ast.Constant(value=bool() as value):
            yield str(not value)
        case ast.Constant(value=int() as value):
            yield from (str(value + 1), f"({value - 1})")
        case ast.Constant(value=float() as value):
            yield from (repr(value * 1.25 if value else 1.0), repr(value * 0.8 if value else -1.0))
        case ast.Compare(ops=[op]):
            left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
            yield from (f"({left} {other} {right})" for other in COMPARISONS[type(op)])
        case ast.BinOp(left=left, op=op, right=right):
            a, b = ast.unparse(left), ast.unparse(right)
            if other := OPERATORS.get(type(op)):
                yield f"(({a}) {other} ({b}))"
            if isinstance(op, WITH_TERMS):
                yield from (f"({a})", f"({b})")
        case ast.BoolOp(op=op, values=values):
            texts = [f"({ast.unparse(value)})" for value in values]
            other = " or " if isinstance(op, ast.And) else " and "
            yield f"({other.join(texts)})"
            same = " and " if isinstance(op, ast.And) else " or "
            for i in range(len(texts)):
                yield f"({same.join(texts[:i] + texts[i + 1 :])})"
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.IfExp(body=body, orelse=orelse):
            yield from (f"({ast.unparse(body)})", f"({ast.unparse(orelse)})")


def mutated(source: str, mutant: Mutant) -> str:
    """Return the file's text with the change made."""
    raw = source.encode()
    return (raw[: mutant.start] + mutant.after.encode() + raw[mutant.end :]).decode()


def files_of(folder: str) -> list[str]:
    """Return the files of a folder of the package, or the file of that name."""
    place = ROOT / PACKAGE / folder
    found = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return [str(path.relative_to(ROOT)) for path in found if path.name != "__init__.py"]


# --- Their tests ----------------------------------------------------------------------------------


def imported_by(path: Path, exports: dict[str, dict[str, str]]) -> set[str]:
    """Return the package's modules that a file imports.

    Args:
        path: the file.
        exports: package -> name that it hands on -> the module that has it.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                of_package = exports.get(node.module, {}).get(name.name)
                found |= {node.module, f"{node.module}.{name.name}"}
                found |= {of_package} if of_package else set()
    return {module for module in found if module.startswith(PACKAGE)}


def read_exports() -> dict[str, dict[str, str]]:
    """Return for each package the modules of the names that its `__init__` hands on."""
    exports: dict[str, dict[str, str]] = {}
    for path in (ROOT / PACKAGE).rglob("__init__.py"):
        names = {}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {name.asname or name.name: node.module for name in node.names}
        exports[".".join(path.parent.relative_to(ROOT).parts)] = names
    return exports


class Tests:
    """Which test files belong to which file of the package."""

    def __init__(self, most: int) -> None:
        exports = read_exports()
        self.most = most
        self.imports = {
            path: imported_by(path, exports)
            for pattern in ("tests/test_*.py", f"{PACKAGE}/**/*.py")
            for path in sorted(ROOT.glob(pattern))
        }

    def of(self, file: str) -> list[str]:
        """Return the test files of a file, the most specific first.

        They import it, or, where there are not enough of these, a module that imports it.
        """
        module, stem = file.removesuffix(".py").replace("/", "."), Path(file).stem
        direct = self._tests_that_import({module})
        users = {
            ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for path, modules in self.imports.items()
            if module in modules and path.parts[len(ROOT.parts)] == PACKAGE
        }
        found = [*direct, *(path for path in self._tests_that_import(users) if path not in direct)]
        found.sort(key=lambda path: (path not in direct, stem not in path.stem))
        return [str(path.relative_to(ROOT)) for path in found[: self.most]]

    def _tests_that_import(self, modules: set[str]) -> list[Path]:
        """Return the test files that import one of them, those that import least first."""
        tests = [path for path in self.imports if path.parts[len(ROOT.parts)] == "tests"]
        found = [path for path in tests if self.imports[path] & modules]
        return sorted(found, key=lambda path: len(self.imports[path]))


# --- Runs -----------------------------------------------------------------------------------------


def copy_repository(to: Path) -> None:
    """Copy the tracked files and those that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)


def run_tests(tree: Path, tests: list[str], timeout: float) -> str:
    """Return "passed", "failed", "error" (nothing was run) or "timeout"."""
    # No .pyc: it is told from a changed file by its size and its second alone.
    more = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-m", "not slow"]
    command += ["-p", "no:cacheprovider", *tests]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=os.environ | more,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return "timeout"
    # 2: an error while collecting, 5: all tests are skipped, for want of a package.
    return {0: "passed", 1: "failed", 2: "failed", 5: "passed"}.get(status, "error")


def seconds_of(tree: Path, test: str) -> float:
    """Return how long a test file takes without any mutant; end where it does not pass."""
    begun = time.monotonic()
    if (state := run_tests(tree, [test], 1800)) != "passed":
        sys.exit(f"error: {test}: {state} without any mutant")
    return time.monotonic() - begun


def try_mutant(tree: Path, mutant: Mutant, tests: list[str], timeout: float) -> str:
    """Return what became of a mutant: "killed", "survived", "timeout" or "no tests"."""
    if not tests:
        return "no tests"
    path = tree / mutant.file
    source = path.read_text()  # the repository's may have changed since
    path.write_text(mutated(source, mutant))
    try:
        found = run_tests(tree, tests, timeout)
    finally:
        path.write_text(source)
    if found == "error":
        raise RuntimeError(f"pytest could not run {' '.join(tests)}")
    return {"passed": "survived", "failed": "killed"}.get(found, found)


# --- Results --------------------------------------------------------------------------------------


def report(rows: list[dict]) -> dict:
    """Return counts and survivors of each folder. What runs out of time counts as killed."""
    folders = {}
    for folder in sorted({row["folder"] for row in rows}):
        mine = [row for row in rows if row["folder"] == folder]
        counts = Counter(row["outcome"] for row in mine)
        killed = counts["killed"] + counts["timeout"]
        folders[folder] = {
            "mutants": len(mine),
            "killed": killed,
            "survived": len(mine) - killed,
            "share": round(killed / len(mine), 4),
            "survivors": [
                {key: row[key] for key in ("file", "line", "before", "after", "outcome")}
                for row in mine
                if row["outcome"] in ("survived", "no tests")
            ],
        }
    return folders


def choose(folders: list[str], sample: int, seed: int) -> list[tuple[str, Mutant]]:
    """Return all mutants of the folders, or `sample` of them, as many of each folder."""
    chosen = []
    for i, folder in enumerate(folders):
        all_of_it = [
            mutant
            for file in files_of(folder)
            for mutant in mutants_of(file, (ROOT / file).read_text())
        ]
        share = sample // len(folders) + (i < sample % len(folders))
        if sample and share < len(all_of_it):
            all_of_it = random.Random(f"{seed} {folder}").sample(all_of_it, share)
        chosen += [(folder, mutant) for mutant in all_of_it]
    return chosen


def main() -> None:
    """Run the mutants that are not in the results yet, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file for the report as JSON")
    parser.add_argument("--folders", default=",".join(FOLDERS), help="with commas between them")
    parser.add_argument("--sample", type=int, default=0, help="so many mutants; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--tests", type=int, default=8, help="most test files for a mutant")
    args = parser.parse_args()
    log = args.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {row["name"]: row for row in rows}
    chosen = choose(args.folders.split(","), args.sample, args.seed)
    tests = Tests(args.tests)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy_repository(tree)
        clock: dict[str, float] = {}  # seconds of a test file as it is
        for place, (name, mutant) in enumerate(chosen, start=1):
            if mutant.name in done:
                continue
            mine = tests.of(mutant.file)
            for test in mine:
                if test not in clock:
                    clock[test] = seconds_of(tree, test)
            begun = time.monotonic()
            outcome = try_mutant(tree, mutant, mine, 60 + 3 * sum(clock[test] for test in mine))
            seconds = round(time.monotonic() - begun, 1)
            row = {"name": mutant.name, "folder": name, "outcome": outcome, "seconds": seconds}
            row |= mutant._asdict()
            done[mutant.name] = row
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            change = f"{mutant.before!r} -> {mutant.after!r}"
            print(
                f"{place}/{len(chosen)} {outcome} {mutant.file}:{mutant.line} {change}", flush=True
            )
    found = report([done[mutant.name] for _, mutant in chosen])
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    for name, part in found.items():
        print(f"{name:12} {part['killed']} of {part['mutants']} killed")


if __name__ == "__main__":
    main()
