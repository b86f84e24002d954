"""Files of a trace on disk: their list, their check against the plan, and their bytes.

Hands on `inspect`, `Blocks`, `find_traces` and `Member`. Believes nothing that a file says: no codec, dtype or path comes from the
trace. Never imports dask, xarray or click.
"""
