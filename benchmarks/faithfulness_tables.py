def report(**k): return ''
