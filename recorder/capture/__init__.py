"""Sees every attention call of a model without changing one bit of its output.

Hands on `Capture`, `Call`, `Listener` and what a pipeline's denoisers are. Says nothing of what a call means.
"""
