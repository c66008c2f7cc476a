"""Question benchmarks, put to a model and to its steered forms."""
