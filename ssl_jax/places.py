"""Where on disk what can be made again is kept."""

import os
from pathlib import Path


def user_cache() -> Path:
    """`$SSL_JAX_CACHE`, else `ssl_jax` in the user's cache directory. It need not exist yet."""
    explicit = os.environ.get("SSL_JAX_CACHE")
    return Path(explicit or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ssl_jax").expanduser()
