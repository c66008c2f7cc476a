"""What the engine asks of a benchmark."""

from __future__ import annotations

from factory.registry import Plugin


class Benchmark(Plugin):
    """Base of the benchmarks, of whatever sort."""
