"""What a captured call means: its branch and sample, step, layer, grid and token groups.

Labels are proven from values and shapes, never from counts alone; what cannot be proven is refused in words.
"""
