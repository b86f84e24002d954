"""The command `i2am`: its group, options that commands share, how text is written, failures and exit codes.

Subcommands of other parts are found through the entry-point group `i2am.commands`. `--help` never loads dask or torch.
"""
