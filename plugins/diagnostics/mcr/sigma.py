"""MCR's noise where a recipe does not say it: sigma_m in standard deviations of the cache (SPEC A8)."""

from __future__ import annotations

from factory.model.view import ModelView

NAME, PARAMETER = "mcr", "k_sigma"
OTHERS = 0.1  # AMPS, appendix A.1, of its Qwen models
BY_FAMILY = {"llava": 1.0, "steering_factory_composed": 1.0}  # AMPS, appendix A.1; the second is Llama-like too


def default_k_sigma(view: ModelView) -> float:
    """That of the model's card, else of its family or the nearest that it is derived from, else that of Qwen models."""
    if PARAMETER in (given := view.defaults.get(NAME, {})):
        return float(given[PARAMETER])
    names = [vars(cls).get("name") for cls in type(view.family).__mro__]
    return next((BY_FAMILY[name] for name in names if name in BY_FAMILY), OTHERS)
