"""Maps as files and pictures.

Hands on `save_map`, `draw` and `save_picture`. Never asks a trace for attention.
"""
