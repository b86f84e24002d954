"""Inspection of a trace: summary, verification, losses of the encoding, known truth, patches worth asking about.

Hands on `describe`, `verify`, `find_truth` and `choose_cells`. Never prints.
"""
