"""Where the bytes of blobs lie: one small interface and its implementations."""
