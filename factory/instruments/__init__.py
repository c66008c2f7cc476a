"""What several diagnostics measure with: branches of a run, residual streams, lenses, attention, heads."""
