"""Storage: keeps blobs where every node can reach them."""
