"""Attention as it is stored: softmax and rounding on the model's device, and the way of the numbers to the host.

Hands on `encode_scores`, `exact` and `Outbox`.
"""
