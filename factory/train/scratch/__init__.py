"""Training a small model of the zoo from nothing."""
