"""Render tables and pictures: `python -m ssl_jax.reports.render_documents [--figures]`.

The tables come from stored result files. In README.md and docs/*.md the table of NAME is between a
mark and `<!-- end -->`:

    <!-- seeds: NAME -->        one row a method: means and intervals over its seeds, from
                                results/NAME/METHOD/seed-N.json; NAME of a sweep is SWEEP/SCALE
    <!-- experiment: NAME -->   an experiment's tables and conclusion, from
                                results/experiments/NAME.json
    <!-- dynamics: NAME -->     eigenspaces beside the replication's, from
                                results/dynamics/NAME.json
    <!-- doctor: NAME -->       how often the doctor was sure, and wrong in it, from
                                results/doctor/NAME.json
    <!-- labels: NAME -->       the probe with few labels of one run, from results/NAME.json
    <!-- measures: NAME -->     rank correlations of the label-free measures, from results/NAME.json
    <!-- replication: SCALE --> the published tables and claims, from
                                results/TABLE/SCALE/CELL/seed-N.json

A picture figures/NAME/FIGURE.png in docs/*.md is of the experiment NAME, or of the seeds NAME.
"""

import argparse
import hashlib
import io
import re
from pathlib import Path

from ssl_jax import files
from ssl_jax.reports import markdown as md
from ssl_jax.reports.compare.figures import Line, draw_rows
from ssl_jax.reports.compare.runs import Group, Run, estimate, values
from ssl_jax.reports.compare.tables import SEEDS, STATE, Column, in_text, measured, tabulate
from ssl_jax.reports.dynamics import table
from ssl_jax.reports.experiments import registry
from ssl_jax.reports.figure import label, save
from ssl_jax.reports.replication.published import PUBLISHED
from ssl_jax.reports.replication.results import gather
from ssl_jax.reports.replication.tables import markdown
from ssl_jax.text import in_markdown
from ssl_jax.workdir.directory import read_json
from ssl_jax.workdir.schema import FLAG, KNOWN, NUMBER, SHARE, TEXT, WHOLE, Shape, require

ROOT = Path(__file__).parents[2]
PICTURE = re.compile(r"\]\(figures/(\w+)/([\w-]+)\.png\)")
ACCURACIES = ("linear_accuracy", "ridge_accuracy", "knn_accuracy")
UNTRAINED = "random_init_linear_accuracy"
SPREAD = ("relative_spread", "effective_rank")
SEED: Shape = {
    "method": TEXT,
    "seed": WHOLE,
    **{name: SHARE for name in ACCURACIES},
    f"{UNTRAINED}?": SHARE,
    "relative_spread": NUMBER,
    "effective_rank": NUMBER,
    "collapsed": FLAG,
    "few_label?": {"pretrained": {"mean": SHARE}},
    "state?": TEXT,
}
MARKED = re.compile(
    r"(<!-- (seeds|experiment|dynamics|labels|doctor|measures|replication): ([\w/]+) -->\n)"
    r".*?(<!-- end -->)",
    re.DOTALL,
)


def read_results(name: str, root: Path = ROOT) -> list[dict]:
    """Return all stored results of one experiment."""
    paths = sorted((root / "results" / name).glob("*/seed-*.json"))
    return [require(read_json(path), SEED, path) for path in paths]


def read_runs(name: str, root: Path = ROOT) -> dict[str, dict]:
    """Return the runs of a stored result of the task "dynamics", by name."""
    path = root / "results" / "dynamics" / f"{name}.json"
    return require(read_json(path), {"runs": {str: table.RECORD}}, path)["runs"]


def groups_of(results: list[dict]) -> list[Group]:
    """Return the runs by method, in the order of first appearance."""
    groups: dict[str, Group] = {}
    for result in results:
        one = groups.setdefault(result["method"], Group({"method": result["method"]}, []))
        one.runs.append(Run(Path(), result["seed"], {}, result, {}, {}))
    return list(groups.values())


def seeds_table(results: list[dict]) -> str:
    """Return a table with one row for each method."""
    columns = [*measured([*ACCURACIES, "few_label.pretrained.mean", *SPREAD]), STATE]
    method: Column = ("method", lambda one: one.settings["method"])
    return in_text(tabulate(groups_of(results), [method, SEEDS], columns))


def draw_seeds(results: list[dict], folder: Path) -> None:
    """Draw linear.png: the accuracy of each method's seeds, their mean and interval."""
    groups = groups_of(results)
    found = [list(values(one, "linear_accuracy").values()) for one in groups]
    lines = [Line(label(one.settings["method"]), x) for one, x in zip(groups, found, strict=True)]
    untrained = estimate(Group({}, [run for one in groups for run in one.runs]), UNTRAINED)
    xlabel = "linear accuracy on the test images, %"
    figure = draw_rows(lines, xlabel, untrained.mean if untrained else None)
    save(figure, folder / "linear.png")


def read_labels(path: Path) -> dict:
    """Return a stored result with the probe of few labels."""
    spread: Shape = {"mean": SHARE, "std": NUMBER}
    few: Shape = {"labels_per_class": WHOLE, "draws": WHOLE, **dict.fromkeys(CONTENDERS, spread)}
    fields: Shape = {"few_label": few, "device": TEXT, "versions": {"jax": TEXT}}
    return require(read_json(path), fields, path)


CONTENDERS = {"pretrained": "pretrained", "random_init": "untrained", "raw_pixels": "raw pixels"}


def labels_table(result: dict) -> str:
    """Return a row for each contender of the probe with few labels, and device and version."""
    few = result["few_label"]
    head = f"| encoder, {few['labels_per_class']} labels a class | test accuracy, % |\n|---|---|\n"
    rows = [f"| {word} | {_percent(few[name])} |\n" for name, word in CONTENDERS.items()]
    made = in_markdown(f"{result['device']}, jax {result['versions']['jax']}")
    note = f"± is the standard deviation over the same {few['draws']} draws of labels ({made}).\n"
    return f"{head}{''.join(rows)}\n{note}"


SHARES = ("10%", "25%", "50%")


def replication_tables(scale: str, root: Path) -> str:
    """Return the published tables and claims at a scale; sweeps of our own have other documents."""
    gathered = gather([root / "results"])
    cells = gathered.cells.get(scale, {})
    published = {key: group for key, group in cells.items() if key[0] in PUBLISHED}
    return markdown(gathered._replace(cells={scale: published}), scale)


def doctor_table(result: dict) -> str:
    """Return the verdicts on unfinished runs against those at the end, by what the end was."""
    head, lines = ["the end", "runs", *(f"at {share}: sure, same" for share in SHARES)], []
    ends: dict[str, list[dict]] = {}
    for row in result["rows"]:
        ends.setdefault(row["100%"].split(", ")[0], []).append(row)
    for end, rows in sorted(ends.items()):
        cells = []
        for share in SHARES:
            found = [row[share].split(", ") for row in rows]
            sure = sum(certainty == "sure" for _, certainty in found)
            cells.append(f"{sure}, {sum(state == end for state, _ in found)}")
        lines.append([end, len(rows), *cells])
    every = result["summary"][-1]
    summary = (
        f"\nOf {every['verdicts']} verdicts, one a row, {every['sure']} were sure "
        f"({every['sure_collapsed']} of them of a collapse); the end contradicted "
        f"{every['contradicted']}.\n"
    )
    return md.table(head, lines) + summary


def _percent(spread: dict) -> str:
    return f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f}"


def read_measures(path: Path) -> dict:
    """Return a stored result of benchmarks/label_free.py."""
    groups: Shape = {
        f"{group}_{name}": kind
        for group in GROUPS
        for name, kind in (("rho", KNOWN), ("p", KNOWN), ("runs", WHOLE))
    }
    row: Shape = {"cell": TEXT, "linear_accuracy": SHARE}
    fields: Shape = {"rows": [row], "correlations": [{"measure": TEXT, **groups}]}
    return require(read_json(path), fields, path)


GROUPS = {"all": "all runs", "byol": "BYOL's runs"}


def measures_table(result: dict) -> str:
    """Return the rank correlation of each measure with the linear accuracy, a row a measure."""
    lines, header = [], ["measure"]
    for words in GROUPS.values():
        header += [f"{words}: rho", "p", "runs"]
    for row in result["correlations"]:
        cells = []
        for group in GROUPS:
            rho, p = (row[f"{group}_{name}"] for name in ("rho", "p"))
            cells += ["", ""] if rho is None or p is None else [f"{rho:+.2f}", f"{p:.2g}"]
            cells.append(str(row[f"{group}_runs"]))
        name = row["measure"].replace("|", "\\|")
        lines.append([f"`{name}`", *cells])
    accuracies = [100 * row["linear_accuracy"] for row in result["rows"]]
    return md.table(header, lines) + (
        f"\nThe {len(accuracies)} runs have linear accuracies of {min(accuracies):.1f} to "
        f"{max(accuracies):.1f}%.\n"
    )


RENDERERS = {
    "seeds": lambda name, root: seeds_table(read_results(name, root)),
    "experiment": lambda name, root: registry.report_stored(
        root / "results" / "experiments" / f"{name}.json"
    ),
    "dynamics": lambda name, root: table.report(read_runs(name, root)),
    "doctor": lambda name, root: doctor_table(
        read_json(root / "results" / "doctor" / f"{name}.json")
    ),
    "measures": lambda name, root: measures_table(read_measures(root / "results" / f"{name}.json")),
    "labels": lambda name, root: labels_table(read_labels(root / "results" / f"{name}.json")),
    "replication": replication_tables,
}


def render(text: str, root: Path = ROOT) -> str:
    """Return `text` with every marked table rendered again."""
    return MARKED.sub(lambda m: m[1] + RENDERERS[m[2]](m[3], root) + m[4], text)


def digest_of(name: str, root: Path = ROOT) -> str:
    """Return a digest of the stored files of NAME, which a picture of them carries."""
    path = root / "results" / "experiments" / f"{name}.json"
    seeds = sorted((root / "results" / name).glob("*/seed-*.json"))
    content = (one.read_bytes() for one in ([path] if path.is_file() else seeds))
    return hashlib.sha256(b"".join(content)).hexdigest()


def pictures(root: Path = ROOT) -> dict[str, list[str]]:
    """Return the figures that the pages show, by NAME."""
    found: dict[str, list[str]] = {}
    for path in documents(root):
        for name, figure in PICTURE.findall(files.read_text(path, "a document")):
            found.setdefault(name, []).append(figure)
    return found


def draw_pictures(root: Path = ROOT) -> None:
    """Draw the figures that the pages show, in few colours, as they are small then."""
    from PIL import Image, PngImagePlugin

    for name, figures in pictures(root).items():
        note, out = PngImagePlugin.PngInfo(), files.make_folder(root / "docs" / "figures" / name)
        note.add_text("Source", digest_of(name, root))
        if name in registry.REPORTS:
            registry.draw_stored(root / "results" / "experiments" / f"{name}.json", out)
        else:
            draw_seeds(read_results(name, root), out)
        for path in out.glob("*.png"):
            if path.stem not in figures:  # which no page shows
                path.unlink()
                continue
            with Image.open(path) as image:
                small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
            content = io.BytesIO()
            small.save(content, "PNG", optimize=True, pnginfo=note)
            files.write_whole(path, content.getvalue())


def documents(root: Path = ROOT) -> list[Path]:
    """Return the Markdown files whose tables are rendered."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def main() -> None:
    """Render all documents and, with --figures, draw figures of stored results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figures", action="store_true", help="also draw the pages' figures")
    given = parser.parse_args()
    for path in documents():
        files.write_whole(path, render(files.read_text(path, "a document")))
    if given.figures:
        draw_pictures()


if __name__ == "__main__":
    main()
