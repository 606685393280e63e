"""Errors that a user can cause and mend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.scripts.faults import PipelineError

__all__ = ["ManifestError", "PipelineError"]


class ManifestError(PipelineError):
    """Every fault of a folder of slices, collected before it is raised.

    Args:
        faults: Path relative to the source folder (or a patient id) -> its messages, in order of discovery.
    """

    def __init__(self, faults: Mapping[str, Sequence[str]]) -> None:
        self.faults = {subject: list(messages) for subject, messages in faults.items()}
        lines = [f"{subject}: {message}" for subject, messages in self.faults.items() for message in messages]
        super().__init__("\n".join(lines))
