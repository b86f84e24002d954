"""The analyzer's subcommands: what each asks, and what it prints.

Hands on commands to the group. Never loads dask or xarray before a command runs.
"""
