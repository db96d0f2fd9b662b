"""The client side of the farm: connecting, submitting, following, collecting.

`farm` and `job` are the asynchronous truth, `blocking` its thin face; `submission` makes jobs of functions and arguments, `connection`
outlives bad weather, `embedded` brings a farm of one's own.
"""
