"""The site: `python -m sphinx -W docs site`.

It needs no network. The notebooks run while it is built. Docstrings of the package are plain
text with formulas, not reStructuredText: `as_text` makes them readable for Sphinx.
"""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext import napoleon

ROOT = Path(__file__).parent.parent
# the notebooks and the API are of this copy, wherever another one is installed
sys.path.insert(0, str(ROOT))

project = "ssl_jax"
copyright = "the ssl_jax authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "ssl_jax"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
# docstrings give shapes and types; types of other projects could not be linked offline
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
nitpick_ignore_regex = [("py:.*", r"(jax|numpy|flax|optax)\..*")]  # other projects' names

# --- The API's pages: one for each folder ---------------------------------------------------------

SKIPPED = ("tasks", "reports")  # what the command line does, not a library


def write_api(app: Sphinx) -> None:
    """Write api/FOLDER.md, with every public module of that folder, and api/index.md."""
    out = Path(app.srcdir) / "api"
    out.mkdir(exist_ok=True)
    folders: dict[str, list[str]] = {}
    for path in sorted((ROOT / "ssl_jax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] not in SKIPPED and not path.name.startswith("__"):
            folders.setdefault(parts[1] if len(parts) > 2 else "ssl_jax", []).append(
                ".".join(parts)
            )
    for folder, modules in folders.items():
        package = "ssl_jax" if folder == "ssl_jax" else f"ssl_jax.{folder}"
        lines = [
            f"# `{package}`",
            "",
            "```{eval-rst}",
            f".. automodule:: {package}",
            "   :no-members:",
            "```",
            "",
        ]
        for module in modules:
            lines += [f"## `{module}`", "", "```{eval-rst}", f".. automodule:: {module}", "```", ""]
        write_if_new(out / f"{folder}.md", "\n".join(lines))
    names = "\n".join(sorted(folders))
    intro = (
        "# API\n\nEvery public module, by folder. [Architecture](../architecture.md) says what "
        "each is for."
    )
    index = f"{intro}\n\n```{{toctree}}\n{names}\n```\n"
    write_if_new(out / "index.md", index)


def write_if_new(path: Path, text: str) -> None:
    """Write a file unless it has this text already, so that Sphinx reads it once."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# --- Docstrings -----------------------------------------------------------------------------------

SECTIONS = napoleon.Config(napoleon_use_rtype=False)
SECTION = re.compile(r"(Args|Returns|Raises|Yields|Example|Examples|Note):$")


def as_text(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a plain docstring, in place.

    Indented blocks become literal, Args and Returns become lists. The arguments are those of
    Sphinx's event autodoc-process-docstring.
    """
    out: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        if SECTION.match(line):
            i += 1
            block = []
            while i < len(lines) and (not lines[i].strip() or lines[i].startswith(" ")):
                block.append(escaped(lines[i]))
                i += 1
            out += ["", *section_of(line, block), ""]
        elif line.startswith(">>>"):  # an example, up to the next empty line
            out.append("")
            while i < len(lines) and lines[i].strip():
                out.append(lines[i])
                i += 1
        elif line.startswith(" ") and line.strip():
            out += ["", "::", ""]
            while i < len(lines) and (not lines[i].strip() or lines[i].startswith(" ")):
                out.append(lines[i] and f"  {lines[i]}")
                i += 1
            out.append("")
        else:
            out.append(escaped(line))
            i += 1
    # Napoleon would read the first line of a property as "type: what it is".
    sections = what not in ("attribute", "data", "property")
    lines[:] = (
        str(napoleon.GoogleDocstring(out, SECTIONS, app, what, name, obj, options)).splitlines()
        if sections
        else out
    )


def section_of(title: str, block: list[str]) -> list[str]:
    """Return the lines of a section, with one indentation for continued lines.

    Returns becomes a list where several things are named. It becomes a field here already, since
    Napoleon would take its first word for a type.
    """
    base = min((len(line) - len(line.lstrip()) for line in block if line.strip()), default=0)
    texts = [(line.startswith(" " * (base + 1)), line.strip()) for line in block]
    if title not in ("Returns:", "Yields:"):
        indented = ["        " * deep + "    " * (not deep) + text for deep, text in texts]
        return [title, *(line.rstrip() for line in indented)]
    field = f":{title[:-1].lower()}:"
    named = [not deep and bool(re.match(r"[^:]+: ", text)) for deep, text in texts]
    if sum(named) < 2:
        return [field, *("    " + text if text else "" for _, text in texts)]
    lines = [field]
    for entry, (_, text) in zip(named, texts, strict=True):
        lines += ["", f"    * {text}"] if entry else [f"      {text}" if text else ""]
    return lines


def escaped(line: str) -> str:
    """Return a line in which `x` is ``x``, and marks of reStructuredText elsewhere are escaped."""
    parts = re.split(r"(`[^`]+`)", line.replace("``", "`"))
    texts = [
        f"``{part[1:-1]}``" if i % 2 else re.sub(r"([*|\\_`])", r"\\\1", part)
        for i, part in enumerate(parts)
    ]
    # Code that touches a letter or a sign would not be seen as code.
    joined = ""
    for i, text in enumerate(texts):
        if joined and text:
            code_before, code_here = joined.endswith("``") and not i % 2, bool(i % 2)
            touching = (code_here and re.search(r"[^\s(\[{\"'/:-]$", joined)) or (
                code_before and re.match(r"[\w(\[{]", text)
            )
            joined += "\\ " if touching else ""
        joined += text
    return joined


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, whose docstring is Python's own."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: Sphinx) -> None:
    """Connect the functions above to Sphinx's events."""
    app.connect("builder-inited", write_api)
    app.connect("autodoc-process-docstring", as_text)
    app.connect("autodoc-skip-member", skip)
