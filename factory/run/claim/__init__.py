"""Whether scaling a method by a measured number helps (``claim:`` of a recipe), on several draws of the data."""
