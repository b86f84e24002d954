"""What a trace holds and whether it is whole: summary, verification, losses of the encoding, known truth.

Hands on `describe`, `verify`, `column_mass_lost` and `find_truth`. Prints nothing.
"""
