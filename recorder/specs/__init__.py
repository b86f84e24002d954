"""Files that describe runs: TOML specs, manifests, probes, and the pipelines that they name.

Hands on specs, manifest rows and probes, and loads what they name.
`spec` and `manifest` are read before torch is loaded; only `loading` needs it.
"""
