"""Where runs are looked at: a server of this machine, one HTML file, a frame in a notebook, and a gallery of many runs.

The page itself is the folder `page`: HTML, CSS and ES modules. Nothing that a trace says is ever read as HTML, and no path that is asked
of the server names a file.
"""
