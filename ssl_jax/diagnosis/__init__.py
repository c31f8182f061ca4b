"""The doctor: what ails a run, by which signs, and what to turn."""
