"""Experiments: each one command that ends in a table, figures and result.json."""
