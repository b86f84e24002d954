def report(**k):
    return ""
