"""Aggregation of calls into a map: which are selected, how each is brought to the common grid, and the task graph that adds them.

Hands on the request of a map, its selection and `build_map`. Never computes by itself: every result is lazy.
"""
