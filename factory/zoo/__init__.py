"""The model zoo: cards, and the packages that parts of models come in."""
