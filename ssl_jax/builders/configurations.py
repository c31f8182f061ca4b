"""Find configuration files, packaged ones by name, and let them import each other.

The packaged ones lie in `configs/`: beside `ssl_jax/` in a clone, inside it where a wheel was
installed. While a configuration file runs, `configs` is that folder for it, wherever the file lies:
`from configs import quickstart` works in all of them.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

from ssl_jax.errors import UserError, nearest
from ssl_jax.files import local_path

PACKAGE = Path(__file__).parents[1]
# the folder that has configs/: the package in a wheel, else the clone
HOME = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent
FOLDER = "configs"

_modules: dict[str, ModuleType] = {}  # `configs` and what was imported of it


def find_config(name: str) -> Path:
    """Return the configuration file that a user names.

    Args:
        name: a path; a path below `HOME`, such as "configs/quickstart.py"; or a packaged
            configuration's name, such as "quickstart" or "sweeps/table1".

    Returns:
        The file, by the path as typed where that is one.

    Raises:
        UserError: there is no such file.
    """
    name = local_path("--config", name)
    places = [Path(name), HOME / name, HOME / FOLDER / f"{name.removesuffix('.py')}.py"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"--config: no file {name}, {nearest(name, spelled_like(name))}")
    return found


def spelled_like(name: str) -> list[str]:
    """Return the packaged configurations, as paths or as bare names, whichever `name` is."""
    known = known_configs()
    if name.endswith(".py") or name.split("/")[0] == FOLDER:
        return known
    return [path.removeprefix(f"{FOLDER}/").removesuffix(".py") for path in known]


def known_configs() -> list[str]:
    """Return the packaged configuration files that can be named, by their paths below `HOME`."""
    files = {p.relative_to(HOME).as_posix(): p.read_bytes() for p in HOME.glob(f"{FOLDER}/**/*.py")}
    return sorted(name for name, text in files.items() if b"def get_config" in text)


@contextmanager
def packaged_configs() -> Iterator[None]:
    """Let `import configs` find the packaged configurations within this context.

    A module `configs` of somebody else is back afterwards. One that is imported from the packaged
    folder stays: there are no two of them.
    """
    places = getattr(sys.modules.get(FOLDER), "__path__", ())
    if {os.path.realpath(place) for place in places} == {os.path.realpath(HOME / FOLDER)}:
        yield
        return
    theirs = _take_away()
    spec = ModuleSpec(FOLDER, None, is_package=True)
    spec.submodule_search_locations = [str(HOME / FOLDER)]
    sys.modules.update(_modules or {FOLDER: module_from_spec(spec)})
    try:
        yield
    finally:
        _modules.update(_take_away())
        sys.modules.update(theirs)


def _take_away() -> dict[str, ModuleType]:
    """Remove `configs` and all below it from the imported modules; return what was removed."""
    names = [name for name in sys.modules if name.split(".")[0] == FOLDER]
    return {name: sys.modules.pop(name) for name in names}
