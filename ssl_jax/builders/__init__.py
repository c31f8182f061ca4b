"""Build the parts of a run from a configuration, which stops here and in `tasks`."""
