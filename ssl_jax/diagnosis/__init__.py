"""The doctor: a run's state, the signs that show it, and the settings to change."""
