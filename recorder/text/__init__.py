"""A run's prompts as the encoders read them, token by token, and the words in them.

All that is kept of a text is proven against what the encoder put out, or nothing is.
"""
