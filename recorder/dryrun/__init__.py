"""A run's trace forecast from configs alone: layers, tokens, bytes.

Hands on `estimate`. Loads no weights and computes no attention.
"""
