"""Answer questions of a trace. Needs no torch."""
