"""Files of a trace on disk: what there is, whether it is what the plan says, and its bytes.

Hands on `inspect`, `Blocks`, `find_traces` and `Member`. Believes nothing that a file says: no codec, dtype or path comes from the
trace. Knows no dask, xarray or click.
"""
