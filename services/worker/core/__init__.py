"""What the worker decides, without a process, a clock or a socket."""
