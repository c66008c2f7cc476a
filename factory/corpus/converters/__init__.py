"""Datasets as their authors release them to LLaVA-JSON records, one file each."""
