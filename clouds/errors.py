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


class DayUnavailable(CloudsError):
    """That day cannot be asked for: it is too new to be processed, or older than the layer."""


class Refused(CloudsError):
    """The service will not give this picture, and would not the next time either. Do not retry; tell the person.

    `status` is the HTTP status, `code` the service's own word for it ("" if none), `body` the first 500 characters.
    """

    def __init__(self, message: str, *, status: int = 0, code: str = "", body: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.body = status, code, body


class ServiceDown(CloudsError, OSError):
    """The service could not answer properly just now: retry with growing, jittered pauses.

    An OSError too, so that a retry policy on weather of every kind covers it. `retry_after_s` is the pause the
    server asked for, in seconds, or None.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Throttled(ServiceDown):
    """We ask too often (429): wait `retry_after_s` if given, and ask for less at a time."""
