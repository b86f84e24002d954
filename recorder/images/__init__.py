"""A run's pictures as the trace keeps them: references, masks, inputs and what was generated.

Hands on `input_pictures`, `generated_pictures` and the window of a reference that the encoder sees. Never resizes or flips a picture.
"""
