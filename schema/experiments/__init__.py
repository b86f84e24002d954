"""What experiments on a model keep beside the trace of its run.

Hands on `EffectRecord`. As all of `schema`, needs the standard library and numpy only.
"""
