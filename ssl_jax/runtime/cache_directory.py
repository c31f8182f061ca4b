"""The directory on disk for everything that can be computed again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Return `$SSL_JAX_CACHE`, else `ssl_jax` in the user's cache directory; it need not exist.

    Raises:
        OSError: if there is no `$SSL_JAX_CACHE` and the user has no home.
    """
    explicit = os.environ.get("SSL_JAX_CACHE")
    try:
        return Path(
            explicit or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ssl_jax"
        ).expanduser()
    except RuntimeError as error:  # a user without a home
        raise OSError(f"{error} Name a directory in SSL_JAX_CACHE") from error
