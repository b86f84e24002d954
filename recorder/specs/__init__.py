"""Files that describe runs: TOML specs, manifests, probes, and the pipelines that they name.

`spec`, `manifest` and `probes` are read before torch is loaded; only `loading` needs it.
"""
