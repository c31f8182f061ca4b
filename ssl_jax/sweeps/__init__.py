"""Sweeps: jobs, their store, and who works on what."""
