"""Maps held against measured effects of interventions: which of them say what mattered.

Hands on `faithfulness` and `Faithfulness`, and `rank_cells`, which the recorder finds as an entry point. Never runs the model.
"""
