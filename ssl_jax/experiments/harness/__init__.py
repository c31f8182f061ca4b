"""Run an experiment from its configuration to its results."""
