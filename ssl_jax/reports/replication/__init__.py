"""The replication: published numbers, ours, and the claims."""
