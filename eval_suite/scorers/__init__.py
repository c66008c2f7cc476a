"""From an answer's text to a score, by a stated rule with an id and a version."""
