"""What a chaos series has to say in the end: what was done, the verdict of the history checker, figures, and complaints of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from history import Verdict


@dataclass(slots=True, kw_only=True)
class Report:
    """`done`: what was done, how often. `complaints`: promises that were seen broken and that the history alone does not show."""

    done: str
    verdict: Verdict | None = None
    figures: str = ""
    skipped: str = ""
    """Why it could not be done on this machine."""
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def untouched(cls, done: str, verdict: Verdict, lost: list[str]) -> Report:
        """Of a series in which no worker may be declared lost; `lost`: those who were."""
        complaints = [f"declared lost: {name}" for name in lost]
        return cls(done=done, verdict=verdict, figures=f"{len(lost)} false expiries", complaints=complaints)

    @property
    def clean(self) -> bool:
        return not self.complaints and (self.verdict is None or self.verdict.clean)

    def __str__(self) -> str:
        if self.skipped:
            return f"skipped: {self.skipped}"
        parts = [self.done, str(self.verdict) if self.verdict is not None else "", self.figures]
        text = "; ".join(filter(None, parts))
        return "\n  BROKEN: ".join((text, *self.complaints))
