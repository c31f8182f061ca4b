"""Figures and tables of recorded dynamics, and the linear theory's fit to them."""
