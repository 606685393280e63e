"""Freed memory is kept where glibc can be asked to, and threads share one heap."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pipeline.command_line import run_cli
from pipeline.scripts import memory
from tests.conftest import BUNDLES


def test_tensors_are_kept_where_glibc_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=lambda *given: calls.append(given)))
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    memory.keep_freed_memory()
    assert calls == []
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    memory.keep_freed_memory()
    assert calls == [(-4, 0), (-1, -1), (-8, 1)]
    for config in ("train", "multi_gpu_train"):
        content = json.loads((BUNDLES[0] / "configs" / f"{config}.json").read_text())
        assert "$@keep_memory" in content["initialize"]


def test_a_command_has_one_heap_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=lambda *given: calls.append(given)))
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    assert run_cli(lambda _: len(calls)) == 1
    assert calls == [(-8, 1)]
