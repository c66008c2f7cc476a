"""Other tools for the same work, side by side with this project."""
