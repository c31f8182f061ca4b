"""The machine: it knows nothing of learning."""
