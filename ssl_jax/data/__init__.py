"""Images on the host, and which of them each step takes."""
