"""Several processes for one run: starting them, sharing the work, and ending together."""
