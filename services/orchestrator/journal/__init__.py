"""The journal: records made durable in order, and read back."""
