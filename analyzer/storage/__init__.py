"""Where the bytes of a trace lie: a folder, a zip file, an address.

Hands on `Storage`, `Part`, `Listing`, `locate` and what turns a path or address into text. Knows no trace, no array and no checksum of
either; believes nothing that a file, an archive or a server says of itself. Never imports dask, xarray or click.
"""
