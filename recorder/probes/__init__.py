"""Keys of texts and pictures that the run was not given, made by its own encoders and projections.

Hands on `Probing` and `Concepts`, words that run through double blocks beside the text. Never changes what the run computes.
"""
