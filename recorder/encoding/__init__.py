"""Encodings of attention: softmax and rounding on the model's device, norms of values, and the copy to the host.

Hands on `encode_scores`, `exact`, `Output`, `value_norms` and `Outbox`. Never makes the model wait for a copy.
"""
