"""AntFarm beside its peers: the same work on each, in turn, in one run."""
