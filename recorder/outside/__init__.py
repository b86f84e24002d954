"""Models outside diffusers: what the caller declares of them, and where their queries lie.

Hands on `declare`, `Declaration` and `Places`. Never guesses what the caller has not said.
"""
