"""The plan of a trace's arrays: one array, and those of a layer.

Hands on `ArrayPlan` and the arrays of a layer. As all of `schema`, needs the standard library and numpy only.
"""
