"""Vision encoders that a model can be composed of."""
