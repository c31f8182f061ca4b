"""Fields and types that results from others must have before they are drawn or reported.

A shape is a `Leaf`; a list `[shape]` of any length; a dict `{name: shape}`, whose other names are
not looked at, where "name?" may be absent or null; or `{str: shape}`, any names.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ssl_jax.errors import UserError
from ssl_jax.text import printable, shown

DEEPEST = 50  # lists and sections within each other; what reads them calls itself once for each


class Leaf(NamedTuple):
    """One value."""

    takes: str  # what it is, for the message
    fits: Callable[[Any], bool]


def is_real(value: Any) -> bool:
    """Return whether a value is a number that a float can hold, finite or not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False
    return True


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return is_real(value) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number that 64 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_known(value: Any) -> bool:
    """Return whether a value is a finite number, or null, which stands for one that was not."""
    return value is None or is_number(value)


def is_array(value: Any, axes: tuple[int, ...]) -> bool:
    """Return whether nested lists are an array of known numbers, with one of these numbers of axes.

    Args:
        value: parsed JSON.
        axes: numbers of axes that are taken; 0: a number or null by itself.

    Returns:
        Whether all lists of one depth have one length, and so on down to the numbers.
    """
    level = [value]
    for depth in range(max(axes) + 1):
        if not any(isinstance(item, list) for item in level):
            return depth in axes and all(map(is_known, level))
        if any(not isinstance(item, list) or len(item) != len(level[0]) for item in level):
            return False
        if not level[0]:  # an empty list has no numbers below it
            return depth + 1 <= max(axes)
        level = [item for row in level for item in row]
    return False


def is_deeper(content: Any, most: int = DEEPEST) -> bool:
    """Return whether more than `most` lists and sections of JSON, full or empty, are nested."""
    level = [content] if isinstance(content, list | dict) else []
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
    return bool(level)


REAL = Leaf("a number", is_real)
NUMBER = Leaf("a finite number", is_number)
SHARE = Leaf("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
KNOWN = Leaf("a finite number or null", is_known)
WHOLE = Leaf("a whole number", is_whole)
TEXT = Leaf("text", lambda value: isinstance(value, str))
FLAG = Leaf("true or false", lambda value: isinstance(value, bool))
SECTION = Leaf("a section", lambda value: isinstance(value, dict))
CURVE = Leaf("a list of finite numbers or nulls", lambda value: is_array(value, (1,)))
TABLE = Leaf("lists of one length of finite numbers or nulls", lambda value: is_array(value, (2,)))
ARRAY = Leaf("nested lists of finite numbers or nulls", lambda value: is_array(value, (1, 2, 3, 4)))
WIDTH = Leaf("null, a number or lists of them", lambda v: v is None or is_array(v, (0, 1, 2)))

Shape = Leaf | list[Any] | dict[Any, Any]


def fault(value: Any, shape: Shape, name: str = "") -> str | None:
    """Return what is wrong with a value, as "field: got this, takes that"; None where it fits.

    Args:
        value: parsed JSON.
        shape: what it should be.
        name: the value's own name; "" for the whole file.

    Returns:
        The first fault, on one line.
    """
    if not name and is_deeper(value):
        return f"is nested deeper than {DEEPEST} levels"
    place = name or "the file"
    if isinstance(shape, Leaf):
        got = shown(value) if not isinstance(value, dict) else "a section"
        return None if shape.fits(value) else f"{printable(place)}: got {got}, takes {shape.takes}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return fault(value, Leaf("a list", lambda value: False), place)
        inner = ((f"{name}[{i}]", item, shape[0]) for i, item in enumerate(value))
    elif not isinstance(value, dict):
        return fault(value, SECTION, place)
    elif str in shape:
        inner = ((_inside(name, key), item, shape[str]) for key, item in value.items())
    else:
        known = {key: key.removesuffix("?") for key in shape}
        absent = [_inside(name, k) for key, k in known.items() if key == k and k not in value]
        if absent:
            return f"lacks {', '.join(absent)}"
        inner = (
            (_inside(name, k), value[k], shape[key])
            for key, k in known.items()
            if key == k or value.get(k) is not None
        )
    found = (fault(item, wanted, path) for path, item, wanted in inner)
    return next((line for line in found if line), None)


def _inside(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def require(content: dict, shape: Shape, path: Path) -> dict:
    """Return the content of a JSON file; UserError where it is not of this shape.

    Args:
        content: the file's.
        shape: what it should be.
        path: the file, for the message.

    Returns:
        The content as it is.
    """
    if line := fault(content, shape):
        raise UserError(f"{path}: damaged, {line}; repair it, or take another result")
    return content
