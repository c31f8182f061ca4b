"""Markdown tables rendered from stored result files: `python -m ssl_jax.reports.tables [--write README.md]`.

Results stand at results/NAME/METHOD/seed-N.json, copies of a work directory's result.json. In a Markdown file the
table of NAME stands between `<!-- results: NAME -->` and `<!-- end -->`.
"""

import argparse
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ACCURACIES = ("linear_accuracy", "ridge_accuracy", "knn_accuracy")
MARKED = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read_results(name: str, root: Path = ROOT) -> list[dict]:
    """All stored results of one experiment."""
    files = sorted((root / "results" / name).glob("*/seed-*.json"))
    return [json.loads(path.read_text()) for path in files]


def table(results: list[dict]) -> str:
    """One row for each run, best linear accuracy first, then the untrained encoder's as a last row."""
    rows = [
        "| method | linear | ridge | kNN | spread | rank | seconds | images/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(results, key=lambda r: -r["linear_accuracy"]):
        signs = f"{r['relative_spread']:.2f} | {r['effective_rank']:.1f}"
        cost = f"{r['seconds']:.0f} | {r['images_per_second']:.0f}"
        rows.append(f"| {r['method']}{' (collapsed)' if r['collapsed'] else ''} | {_percent(r)} | {signs} | {cost} |")
    baselines = {_percent(r, "random_init_"): r for r in results}
    rows += [f"| untrained encoder | {text} | | | | |" for text in sorted(baselines)]
    return "\n".join(rows) + "\n"


def _percent(result: dict, prefix: str = "") -> str:
    return " | ".join(f"{100 * result[prefix + name]:.2f}" for name in ACCURACIES)


def render(text: str, root: Path = ROOT) -> str:
    """`text` with every marked table made anew."""
    return MARKED.sub(lambda m: m[1] + table(read_results(m[2], root)) + m[3], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, default=ROOT / "README.md", help="the Markdown file to renew")
    path = parser.parse_args().write
    path.write_text(render(path.read_text()))


if __name__ == "__main__":
    main()
