"""Methods, each one file that imports the factory alone."""
