"""Inspection of a trace: summary, verification, losses of the encoding, known truth.

Hands on `describe`, `verify` and `find_truth`. Never prints.
"""
