"""The exception for a user's mistake.

Raise it with a sentence that names the field or file, what it got and what it takes. The door
prints it as one `error:` line. Every other exception is a defect of this project and keeps its
traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A configuration, file, checkpoint, image or label that cannot be used as given."""


def nearest(name: str, known: Iterable[str], few: bool = False) -> str:
    """Return the end of an error message that lists the known names, the nearest spelling first.

    >>> nearest("byoll", ["byol", "simsiam"])
    "did you mean 'byol'? It takes: byol, simsiam"

    Args:
        name: what the user wrote.
        known: the names that are taken.
        few: whether to leave out the list if there is a near spelling.

    Returns:
        The words, without a full stop.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close and few:
        return f"did you mean {close[0]!r}?"
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}{'It' if hint else 'it'} takes: {', '.join(known)}"
