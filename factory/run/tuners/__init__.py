"""Training as a run: a tuning, a contest of tuners, a model from scratch."""
