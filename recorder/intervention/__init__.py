"""Interventions: a pipeline run again while some of its attention is left out, through the hooks that record it.

Hands on `intervene`, `intervening`, `check_determinism`, `Intervention`, and `alter_pixels` for the reference itself; without interventions
not one bit of the output changes. The trials of `i2am faithfulness` are made here, and kept through `store`.
"""
