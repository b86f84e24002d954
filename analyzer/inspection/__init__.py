"""Inspection of a trace: summary, verification, losses of the encoding, known truth.

Hands on `describe`, `verify`, `column_mass_lost` and `find_truth`. Never prints.
"""
