"""The files of a work directory, one module for each."""
