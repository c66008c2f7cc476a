"""Connectors between vision encoder and language model."""
