"""Known truth, which a user or the demo brings: where on the reference places of the generated image really come from.

Hands on `read_truth`, `lay_truth` and `write_places`. As all of `schema`, needs the standard library and numpy only.
"""
