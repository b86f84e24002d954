"""Capture of attention calls by hooks that do not change one bit of the model's output.

Hands on `Capture`, `Call`, `Listener` and what a pipeline's denoisers are. Never labels a call.
"""
