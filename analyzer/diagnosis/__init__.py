"""Failure signatures of attention, each against the range that healthy recordings have.

Hands on `diagnose`. Never chooses a range: they are measured, in `ranges.toml`.
"""
