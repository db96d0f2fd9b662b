"""The programs of the farm. They meet each other only over the wire."""
