"""Encodings of attention: softmax and rounding on the model's device, and the copy to the host.

Hands on `encode_scores`, `exact` and `Outbox`. Never makes the model wait for a copy.
"""
