"""Formats that other tools read, one file each, named after what it registers."""
