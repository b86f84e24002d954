"""The writer of a trace: files, journal, threads.

Hands on `Writer`. Never loses a committed step to a later error, and never imports torch.
"""
