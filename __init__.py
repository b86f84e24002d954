"""i2am: record the attention of a diffusion run once, ask anything of it later, without the model.

`i2am.schema` says what a trace is, `i2am.recorder` makes one, `i2am.analyzer` answers from one. Import those; this module
imports nothing.
"""
