"""The asynchronous library."""
