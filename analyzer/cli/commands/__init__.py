"""The analyzer's subcommands: options, what each asks, and what it prints.

What a command needs beyond click is imported when it runs.
"""
