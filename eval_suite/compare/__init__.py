"""Comparing finished runs: one table, paired tests, figures."""
