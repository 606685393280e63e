"""Progress bars: where standard error is a terminal, and never with --quiet."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from pipeline.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "level", "shown"),
    [
        (Terminal, logging.NOTSET, True),
        (Terminal, logging.INFO, True),
        (Terminal, logging.WARNING, False),
        (io.StringIO, logging.INFO, False),
    ],
)
def test_bars(monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], level: int, shown: bool) -> None:
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(logging.getLogger("pipeline"), "level", level)
    assert list(progress("abc", "letters", "letter")) == ["a", "b", "c"]
    assert ("letters" in sys.stderr.getvalue()) == shown
