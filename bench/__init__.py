"""Measurements of the farm as a whole, as ratios against a peer or a raw limit of the same run."""
