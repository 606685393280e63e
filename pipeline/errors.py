"""Errors that a user can cause and mend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.scripts.faults import PipelineError, fault_lines

__all__ = ["ManifestError", "PipelineError"]


class ManifestError(PipelineError):
    """Every fault of a folder of slices: path below the folder, or a patient's id -> its messages."""

    def __init__(self, faults: Mapping[str, Sequence[str]]) -> None:
        self.faults = {subject: list(messages) for subject, messages in faults.items()}
        super().__init__(
            fault_lines((subject, message) for subject, messages in self.faults.items() for message in messages)
        )
