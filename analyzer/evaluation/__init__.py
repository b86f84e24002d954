"""Metrics of one trace, all in one pass, and the difference of two runs.

Hands on `METRICS`, `judge` and `differ`.
"""
