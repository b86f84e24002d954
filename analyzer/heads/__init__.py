"""Attention heads by what they attend to: relevance vectors, ranking, selection, and files of them.

Hands on `head_relevance`, `head_accuracy`, `head_contribution`, `rank_heads`, `select_heads`, `load_heads`, `save_heads`,
`load_concepts`, `concept_words`.
Never needs the model: words are asked of recorded probes.
"""
