"""The page of single samples: what each was, what every method answered, and at which strength it turned or broke."""
