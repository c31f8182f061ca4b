"""Digests by which arrays are known again: one changed bit gives another digest."""

import hashlib

import jax
import numpy as np
from jax.tree_util import keystr

from ssl_jax.types import PyTree


def array_digest(array: np.ndarray) -> str:
    """Return 32 hexadecimal digits that depend on the type, the shape and every bit.

    What is not in memory, such as `EncodedImages`, has an `identity` that decides about its bits.
    """
    if identity := getattr(array, "identity", ""):
        return hashlib.sha256(identity.encode()).hexdigest()[:32]
    content = hashlib.sha256(f"{array.dtype} {array.shape}\n".encode())
    content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return content.hexdigest()[:32]


def tree_digest(tree: PyTree) -> str:
    """Return 32 hexadecimal digits that depend on the path and `array_digest` of every array."""
    lines = (
        f"{keystr(path)} {array_digest(leaf if hasattr(leaf, 'identity') else np.asarray(leaf))}\n"
        for path, leaf in jax.tree.leaves_with_path(tree)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]
