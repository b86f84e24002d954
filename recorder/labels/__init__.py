"""Labels of attention calls: branch and sample, step, layer, grid and token groups.

Labels are proven from values and shapes, never guessed from counts; what cannot be proven is refused, with the way out.
"""
