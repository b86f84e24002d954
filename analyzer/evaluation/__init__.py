"""Metrics of traces and of datasets, on threads or a cluster, and the difference of two runs.

Hands on `METRICS`, `judge`, `evaluate` and `differ`. A trace that cannot be read never costs the others their row.
"""
