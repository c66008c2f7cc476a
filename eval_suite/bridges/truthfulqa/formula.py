"""MC2 as lm-eval computes it, where a task file finds it."""

from lm_eval.tasks.truthfulqa.utils import process_results_mc2 as mc2

__all__ = ["mc2"]
