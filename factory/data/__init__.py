"""Prompts as role-tagged segments, and the samples that benchmarks yield."""
