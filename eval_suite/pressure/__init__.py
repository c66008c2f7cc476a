"""Social pressure on the answers to a benchmark's questions: its kinds and wordings, what is pushed, and what came of
it."""
