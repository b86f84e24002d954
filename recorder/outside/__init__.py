"""Models that are no diffusers pipelines: what the caller declares of them, and where their queries lie.

Hands on `declare`, `Declaration` and `DeclaredSites`.
"""
