"""Markdown tables rendered from stored result files: `python -m ssl_jax.reports.render_documents [--figures DIR]`.

In README.md and docs/*.md the table of NAME stands between a mark and `<!-- end -->`:

    <!-- seeds: NAME -->        one row a method: mean and spread over its seeds, from results/NAME/METHOD/seed-N.json
    <!-- experiment: NAME -->   an experiment's own tables and findings, from results/experiments/NAME.json
    <!-- dynamics: NAME -->     eigenspaces beside the replication's, from results/dynamics/NAME.json
    <!-- replication: SCALE --> the published tables and claims, from results/TABLE/SCALE/CELL/seed-N.json
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from ssl_jax.reports.dynamics import table
from ssl_jax.reports.experiments import registry
from ssl_jax.reports.replication.results import gather
from ssl_jax.reports.replication.tables import markdown

ROOT = Path(__file__).parents[2]
ACCURACIES = ("linear_accuracy", "ridge_accuracy", "knn_accuracy")
MARKED = re.compile(r"(<!-- (seeds|experiment|dynamics|replication): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read_results(name: str, root: Path = ROOT) -> list[dict]:
    """All stored results of one experiment."""
    return [read_json(path) for path in sorted((root / "results" / name).glob("*/seed-*.json"))]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def seeds_table(results: list[dict]) -> str:
    """One row for each method, in the order of their names: mean and standard deviation over its seeds."""
    methods: dict[str, list[dict]] = {}
    for r in results:
        methods.setdefault(r["method"], []).append(r)
    columns = ["method", "seeds", "linear", "ridge", "kNN", "spread", "rank", "collapsed"]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for method, runs in methods.items():
        cells = [_over_seeds([100 * r[name] for r in runs]) for name in ACCURACIES]
        cells += [_over_seeds([r[name] for r in runs]) for name in ("relative_spread", "effective_rank")]
        rows.append(f"| {method} | {len(runs)} | {' | '.join(cells)} | {sum(r['collapsed'] for r in runs)} |")
    return "\n".join(rows) + "\n"


def _over_seeds(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


RENDERERS = {
    "seeds": lambda name, root: seeds_table(read_results(name, root)),
    "experiment": lambda name, root: registry.report(read_json(root / "results" / "experiments" / f"{name}.json")),
    "dynamics": lambda name, root: table.report(read_json(root / "results" / "dynamics" / f"{name}.json")["runs"]),
    "replication": lambda name, root: markdown(gather([root / "results"]), name),
}


def render(text: str, root: Path = ROOT) -> str:
    """`text` with every marked table made anew."""
    return MARKED.sub(lambda m: m[1] + RENDERERS[m[2]](m[3], root) + m[4], text)


def documents(root: Path = ROOT) -> list[Path]:
    """The Markdown files whose tables are rendered."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, help="also draw every stored experiment's figures into DIR/NAME/")
    folder = parser.parse_args().figures
    for path in documents():
        path.write_text(render(path.read_text()))
    for path in sorted((ROOT / "results" / "experiments").glob("*.json")) if folder else []:
        registry.draw(read_json(path), folder / path.stem)


if __name__ == "__main__":
    main()
