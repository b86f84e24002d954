"""Forecast of a run's trace from configs alone: layers, tokens, bytes.

Hands on `estimate`. Loads no weights and computes no attention.
"""
