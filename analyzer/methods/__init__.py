"""Published attribution methods as rows of one table.

Hands on `Recipe`, `RECIPES`, `get_recipe`, and the descriptions that the docs print. Never sees a trace or an array.
"""
