"""Clouds: daily satellite pictures of a box, their cloud cover, and a report."""
