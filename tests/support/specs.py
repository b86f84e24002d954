"""The spec of a short Paint-by-Example run, to which tests add what they need; `model` and the pictures lie beside it."""

PAINT_BY_EXAMPLE = """
seed = 0
[pipeline]
class = "PaintByExamplePipeline"
from_pretrained = "model"
device = "cpu"
[call]
num_inference_steps = 2
height = 32
width = 32
output_type = "np"
[images]
image = "image.png"
mask_image = "mask.png"
"""
