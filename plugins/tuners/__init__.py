"""Tuning methods, one file each, named after what it registers."""
