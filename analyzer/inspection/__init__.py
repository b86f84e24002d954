"""Inspection of a trace: summary, verification, losses of the encoding, known truth, patches worth asking about, measured effects.

Hands on `describe`, `verify`, `find_truth`, `choose_cells` and `open_effects`. Never prints.
"""
