"""What a user asks to record, and what that will weigh, before anything runs. Needs no torch.

Hands on `Options`, the selection of layers, steps, heads and branches, sizes and budgets.
"""
