"""Scenes: drawn pictures and written contexts that contradict each other, with graded difficulty."""
