"""From a configuration to the parts of a run. The configuration stops here and in `tasks`."""
