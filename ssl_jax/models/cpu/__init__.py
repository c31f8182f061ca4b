"""Convolutions in C++ for the CPU."""
