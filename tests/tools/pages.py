"""The tables of a Markdown page, for tests that hold them against the code."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt

Table = list[dict[str, str]]
"""Rows, each column's heading -> the cell's Markdown."""


def tables(page: Path) -> list[Table]:
    """The tables of a page that have rows."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    found: list[list[list[str]]] = []
    for token, inner in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append(inner.content)
    return [[dict(zip(rows[0], row, strict=True)) for row in rows[1:]] for rows in found if len(rows) > 1]


def column(page: Path, heading: str) -> list[str]:
    """The cells below a heading, of all tables that begin with it; names without their backticks."""
    return [row[heading].strip("`") for table in tables(page) if next(iter(table[0])) == heading for row in table]
