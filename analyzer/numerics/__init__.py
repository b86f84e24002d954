"""Arithmetic on plain numpy arrays: resampling, matrix products that stay in cache, bootstrap intervals, correlation.

Hands on `resize`, `matrix`, `product`, `bootstrap_mean` and `correlation`. Never imports dask, xarray, click or a trace.
"""
