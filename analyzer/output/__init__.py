"""Maps as files and pictures.

Hands on `FORMATS`, `save`, `draw` and `illustrate`. Never asks a trace for attention.
"""
