"""One recording from its first call to the finished trace.

Hands on `record` and `recording`. Never changes the image; whatever stops the run, committed steps stay readable.
"""
