"""A study of steering methods: collect, fit, choose on dev, score on test."""
