"""One file per Hugging Face model family."""
