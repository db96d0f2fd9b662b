"""Outcomes that came in columns, as the messages that say the same."""

from __future__ import annotations

from antfarm.v1 import report_queue_pb2


def outcomes_in(group: report_queue_pb2.OutcomeGroup) -> list[report_queue_pb2.Outcome]:
    """All outcomes of a group, those in columns first."""
    columns = group.successes
    rows = zip(
        columns.report_nos, columns.indices, columns.attempts, columns.run_us, columns.results, strict=True
    )  # fmt: skip
    found = [
        report_queue_pb2.Outcome(
            report_no=number,
            index=index,
            attempt=attempt,
            ending=report_queue_pb2.ENDING_SUCCEEDED,
            run_us=run_us,
            result=result,
        )
        for number, index, attempt, run_us, result in rows
    ]
    return [*found, *group.outcomes]
