"""The client side of the farm: connecting, submitting, following, collecting.

`farm` and `job` are the asynchronous truth, `blocking` its thin face. `plan` makes jobs of functions and arguments, `writer` and `coalescer` send
them, `connection` outlives bad weather, `embedded` brings a farm of one's own.
"""
