"""Diagnostics, one file each, named after what it registers."""
