"""The same pool with 256 tasks a message: what a function costs where nobody keeps account of it."""

from peer import serve
from process_pool import ProcessPool


class ProcessPoolChunks(ProcessPool):
    """One message for many tasks, chosen by the caller."""

    chunk = 256


if __name__ == "__main__":
    serve(ProcessPoolChunks())
