"""Attribution methods as rows of one table.

Hands on `Recipe`, `RECIPES`, `get_recipe`, and the descriptions that the docs print. Knows no trace and no array.
"""
