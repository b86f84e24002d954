"""The command `i2am record`: one spec, or a manifest of many over several processes.

Hands on the subcommand through the entry-point group `i2am.commands`. Never loads torch before the input has been checked.
"""
