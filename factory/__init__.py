"""The engine: recipes, models, steering, training and runs; plugins are found through the registry."""
