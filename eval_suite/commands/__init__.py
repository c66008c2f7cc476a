"""Commands of the evaluation suite, one file each, named after what it registers."""
