"""Attribution maps of a trace: R2G, G2R, SRAM, words and tokens, all patches at once, comparisons of methods.

Hands on the functions that `i2am.analyzer` offers by the same names. Every map is a lazy DataArray, never scaled,
inverted or cut; only `heatmap` does that.
"""
