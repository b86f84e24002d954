"""Signs of attention that cannot be trusted, each against the range that healthy recordings have.

Hands on `diagnose`. Ranges are measured, in `ranges.toml`, never chosen.
"""
