"""From calls to maps: which calls are selected, how each is brought to the common grid, and the graph that adds them.

Hands on the request of a map, its selection and `build_map`. Computes nothing by itself: every result is lazy.
"""
