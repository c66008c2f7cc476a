"""A run on disk and on screen: its directory and stages, its environment, its progress bars."""

from factory.run.rundir import RunDir, Stage

__all__ = ["RunDir", "Stage"]
