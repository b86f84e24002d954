"""Softmax values multiplied by what their token gives: norms of values, contributions to the layer's output, effects of losing the token.

Hands on `weigh_calls` and `weighted_array`. Reads nothing before a call's attention is asked for, and never averages over calls.
"""
