"""Task types of the Python worker in the tests of the Node example."""

import antfarm as af


@af.task(name="python.reverse")
def reverse(text: str) -> str:
    """The text backwards."""
    return text[::-1]
