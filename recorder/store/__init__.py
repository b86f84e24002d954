"""The writer of a trace: files, journal, threads. Needs no torch.

Hands on `Writer`. A committed step is never lost to a later error.
"""
