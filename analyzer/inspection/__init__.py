"""Inspection of a trace: summary, verification, losses of the encoding, known truth, measured effects.

Hands on `describe`, `verify`, `find_truth` and `open_effects`. Never prints.
"""
