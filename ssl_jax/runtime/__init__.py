"""The machine: caches, memory, threads and terminal. It knows nothing of learning."""
