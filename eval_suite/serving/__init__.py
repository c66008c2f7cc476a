"""A steered model behind an OpenAI-compatible chat endpoint: what is waiting is answered together, each its own way."""
