"""Bridges to other evaluation harnesses."""
