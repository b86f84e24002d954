"""One recording from its first call to the finished trace.

Hands on `record` and `recording`. Whatever stops the run, what was committed stays readable.
"""
