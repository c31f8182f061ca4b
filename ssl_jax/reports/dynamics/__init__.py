"""Figures and tables of recorded dynamics, and the linear theory laid over them."""
