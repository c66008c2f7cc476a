"""A recipe's sections, one file for each subject."""
