"""The writer of a trace: files, journal, threads.

Hands on `Writer`, and `seal` for what was cut short. Never loses a committed step to a later error, and never imports torch.
"""
