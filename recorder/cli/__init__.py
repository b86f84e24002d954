"""The command `i2am record`: one spec, or a manifest of many over several processes.

Loads torch only once the input has been checked.
"""
