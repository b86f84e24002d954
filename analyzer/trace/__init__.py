"""An open trace and its attention: P, S and G of any call, whichever encoding keeps it.

Hands on `open_trace`, `Trace`, `Calls`, `scan`, `softmax_rows`, lazy views of a layer, and masks. Never averages over calls.
"""
