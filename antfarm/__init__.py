"""AntFarm: a durable task farm."""

__version__ = "0.1.0"
