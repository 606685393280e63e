"""Errors whose cause a user can correct; each message says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.scripts.faults import PipelineError, WritingError, fault_lines

__all__ = ["ManifestError", "PipelineError", "WritingError"]


class ManifestError(PipelineError):
    """All errors that were found in a folder of patients, together in one exception.

    Args:
        faults: The messages by subject. A subject is a patient's id, or a path relative to the folder.
    """

    def __init__(self, faults: Mapping[str, Sequence[str]]) -> None:
        self.faults = {subject: list(messages) for subject, messages in faults.items()}
        super().__init__(
            fault_lines((subject, message) for subject, messages in self.faults.items() for message in messages)
        )
