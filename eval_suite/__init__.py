"""Benchmarks, scorers, comparison and reports."""
