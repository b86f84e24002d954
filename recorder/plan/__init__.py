"""Recording options, sizes and budgets, before anything runs.

Hands on `Options`, the selection of layers, steps, heads and branches, sizes and budgets. Never imports torch.
"""
