"""The errors of Clouds: what a person is told when an input cannot be used.

Responsible for the exception types only. The idea: whoever runs the command line prints `str(error)` and
nothing else, so each message is one line that says what is wrong and, where it is not obvious, what to do.
"""


class CloudsError(Exception):
    """Something given to Clouds cannot be used; the message is one line for a person.

    Permanent by nature: the same input fails in the same way, so a task that raises it is not worth a retry.
    """

    def __init__(self, message: str) -> None:
        # A message may quote foreign text (a file name, a server's answer): keep it one line of bounded length.
        super().__init__(" ".join(message.split())[:600])


class BadBox(CloudsError):
    """A box that names no area on the globe."""


class BadPicture(CloudsError):
    """Bytes that are not a whole picture, or a picture that does not fit its companion."""
