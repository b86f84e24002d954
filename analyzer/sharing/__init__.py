"""Traces for sharing: packed several steps a chunk, made smaller, put into one zip file, copied from one place to another.

Hands on `pack`, `unpack` and `copy`. Reads through the checked reader alone, writes whole or not at all, and never over anything
silently. Never changes a number unless it was asked to, and then says so in the new trace's provenance.
"""
