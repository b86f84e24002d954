"""Prompts of a run as token strings and words.

Hands on `Texts` and `find_words`. Never keeps a token that is not proven against what the text encoder made.
"""
