"""Many traces: a row of metrics for each, in processes or on a cluster; their means, mean maps, and two folders pair by pair.

Hands on `evaluate`, `mean_map` and `differ_pairs`. A trace that cannot be asked costs no other its row. Holds no attention of two traces at
once.
"""
