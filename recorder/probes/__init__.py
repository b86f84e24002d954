"""Keys of texts and pictures that the run was not given, made by its own encoders and projections.

Hands on `Probing`. Never changes what the run computes.
"""
