"""Performance benchmarks: ratios measured in one process, each printed with the baseline it is against."""
