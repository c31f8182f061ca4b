"""What lies in a work directory, one file for each."""
