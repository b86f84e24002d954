"""Figures for papers: maps of one run or several in rows and columns, as vector graphics with colour bars.

Hands on `figure`. Modules about what is shown ask maps and know no matplotlib, which only `canvas` and `paper` load.
"""
