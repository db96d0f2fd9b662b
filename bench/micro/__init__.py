"""What single parts cost: the core, the records' codec, the journal, the messages, a stream. By pytest-benchmark: `make bench-micro`."""
