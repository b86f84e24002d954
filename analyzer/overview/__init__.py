"""The overview of a trace: small arrays, made in one scan, from which the page of `i2am view` shows maps, rows and scores.

Hands on `make_overview`, `load_overview` and `Overview`. Never writes inside a trace.
"""
