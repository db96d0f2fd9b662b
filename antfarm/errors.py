"""The whole tree of exceptions.

Two families: *yours* (`UserError`: mend the call) and *the weather* (`Weather`: try again), and beside them `TaskError`: a
task's own failure, which is data on the wire and becomes an exception only where a caller asks for its result.
Each class that crosses the wire has one `reason`; `antfarm.wire` maps it to a canonical status code and back.
"""

from __future__ import annotations

from typing import Any, ClassVar

from antfarm.model import Failure, FailureClass, TaskState


class AntFarmError(Exception):
    """Root of all errors of AntFarm. `str(error)` is one line that says what to do."""

    reason: ClassVar[str] = "INTERNAL"

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are copied and unpickled by calling their class with `args`, which is the text alone and not what the class was made from.
        return _remade, (type(self), self.args), self.__dict__


def _remade(kind: type[AntFarmError], args: tuple[Any, ...]) -> AntFarmError:
    """A copy of an error before its attributes are set."""
    return kind.__new__(kind, *args)


class UserError(AntFarmError):
    """Something about the call is wrong; repeating it cannot help."""

    reason = "INVALID_FIELD"


class InvalidArgument(UserError):
    """A value breaks a stated limit or form."""

    reason = "INVALID_FIELD"


class InvalidKey(InvalidArgument):
    """A Storage key breaks the rules for keys."""

    reason = "INVALID_KEY"


class DigestMismatch(InvalidArgument):
    """The content is not what its sender announced."""

    reason = "DIGEST_MISMATCH"


class PayloadTooLarge(InvalidArgument):
    """An inline value is above its limit and could not go by reference."""

    reason = "PAYLOAD_TOO_LARGE"


class NotFound(UserError):
    """No such job, task, worker or blob."""

    reason = "NOT_FOUND"


class JobNotFound(NotFound):
    """No such job."""

    reason = "JOB_NOT_FOUND"


class TaskNotFound(NotFound):
    """No such task."""

    reason = "TASK_NOT_FOUND"


class WorkerNotFound(NotFound):
    """No such worker."""

    reason = "WORKER_NOT_FOUND"


class BlobNotFound(NotFound):
    """No such blob."""

    reason = "BLOB_NOT_FOUND"


class SessionNotFound(NotFound):
    """The session has ended: attach again."""

    reason = "SESSION_NOT_FOUND"


class Conflict(UserError):
    """The name is taken by something with other content."""

    reason = "CONFLICT"


class WorkerIdInUse(Conflict):
    """A second live process with the same worker id."""

    reason = "WORKER_ID_IN_USE"


class WrongState(UserError):
    """The thing is not in a state that allows the call."""

    reason = "WRONG_STATE"


class JobClosed(WrongState):
    """The job takes no more tasks."""

    reason = "JOB_CLOSED"


class JobNotEnded(WrongState):
    """Some tasks of the job are not terminal."""

    reason = "JOB_NOT_ENDED"


class NothingToRetry(WrongState):
    """No task of the job ended without success."""

    reason = "NOTHING_TO_RETRY"


class DependencyNotFound(WrongState):
    """A job that is depended on does not exist."""

    reason = "DEPENDENCY_NOT_FOUND"


class IncarnationLost(WrongState):
    """This process was declared lost: attach again under a new incarnation."""

    reason = "INCARNATION_LOST"


class Cycle(WrongState):
    """Orchestrators would form a cycle."""

    reason = "CYCLE"


class ProtocolUnsupported(WrongState):
    """The peers speak different major versions of the protocol."""

    reason = "PROTOCOL_UNSUPPORTED"


class Gap(UserError):
    """A batch does not follow the tasks that are there."""

    reason = "GAP"


class OutOfRange(UserError):
    """A range lies beyond the end."""

    reason = "RANGE"


class PermissionDenied(UserError):
    """The credential does not allow the call."""

    reason = "PERMISSION_DENIED"


class Weather(AntFarmError):
    """Nothing is wrong with the call: try again, after `retry_after_s` where it is known."""

    reason = "UNAVAILABLE"

    def __init__(self, message: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(Weather):
    """The peer cannot be reached or is about to end."""

    reason = "UNAVAILABLE"


class Overloaded(Weather):
    """The peer took nothing because a bound is reached."""

    reason = "OVERLOADED"


class DiskFull(Weather):
    """The peer took nothing because its disk is full."""

    reason = "DISK_FULL"


class Draining(Weather):
    """The peer is draining."""

    reason = "DRAINING"


class DeadlineExceeded(Weather):
    """No answer in the time allowed; whether the call had an effect is unknown."""

    reason = "DEADLINE_EXCEEDED"


class DataLoss(AntFarmError):
    """Stored bytes do not match their digest. Nothing of them may be used."""

    reason = "DATA_LOSS"


class Internal(AntFarmError):
    """A defect of AntFarm; the log of the program holds the details under the id in the message."""

    reason = "INTERNAL"


class PermanentError(AntFarmError):
    """Raised by a task's own code to say that no retry can help."""


class TaskError(AntFarmError):
    """A task did not succeed. Carries where and how: `failure`, `state`, `job_id`, `index`, `attempt`, `worker_id`."""

    def __init__(
        self,
        failure: Failure,
        *,
        state: TaskState = TaskState.FAILED,
        job_id: str = "",
        index: int = 0,
        attempt: int = 0,
        worker_id: str = "",
    ) -> None:
        self.failure = failure
        self.state = state
        self.job_id = job_id
        self.index = index
        self.attempt = attempt
        self.worker_id = worker_id
        where = f" on {worker_id}" if worker_id else ""
        headline = f"{failure.kind}: {failure.message}" if failure.kind else failure.message
        text = f"task {job_id}/{index} attempt {attempt}{where}: {headline}"
        super().__init__(f"{text}\n\n{failure.traceback.rstrip()}" if failure.traceback else text)


class TaskFailed(TaskError):
    """The task's own code failed and no retry was left, or it failed permanently."""


class TaskCrashed(TaskError):
    """The process that ran the task died."""


class TaskLost(TaskError):
    """The farm gave the task up: its nodes were lost too often."""


class DependencyFailed(TaskError):
    """A task that this one needs did not succeed."""


class TaskCancelled(TaskError):
    """The task was cancelled."""


class TaskExpired(TaskError):
    """The task's queue time-to-live or total deadline passed."""


TASK_ERRORS: dict[FailureClass, type[TaskError]] = {
    FailureClass.PERMANENT: TaskFailed,
    FailureClass.APP: TaskFailed,
    FailureClass.CRASH: TaskCrashed,
    FailureClass.INFRA: TaskLost,
    FailureClass.BENIGN: TaskLost,
    FailureClass.DEPENDENCY: DependencyFailed,
    FailureClass.CANCELLED: TaskCancelled,
    FailureClass.EXPIRED: TaskExpired,
}
"""Which exception a recorded failure is raised as."""
