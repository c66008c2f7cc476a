"""Cards of the models that recipes name, and the shipped tiny model."""
