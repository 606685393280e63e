"""Long sentences, private words, dead links and commit hashes are named with page and line, and nothing else is."""

from __future__ import annotations

import re
import tokenize
from pathlib import Path

import pytest

from pipeline.command_line import run_cli
from pipeline.errors import PipelineError
from tests.conftest import ROOT
from tools.prose import CODE, LONGEST, MEAN, WORDS, anchors, main, read_page

PROGRAMS = ("pipeline", "tools", "benchmarks", "stress", "examples")


def said(text: str) -> list[tuple[int, str]]:
    """Line and text of each sentence."""
    return [(one.line, " ".join(one.text.split())) for one in read_page(text).sentences]


def sentence(words: int) -> str:
    return " ".join(["word"] * (words - 1) + ["end."])


def found(root: Path, *given: str) -> list[str]:
    """The lines of the faults, without the root's path."""
    try:
        assert main(["--root", str(root), *given]) == 0
    except PipelineError as error:
        first, *lines = str(error).splitlines()
        assert first == f"{len(lines)} faults in the texts:"
        return [line.replace(f"{root}/", "") for line in lines]
    return []


def write(root: Path, **pages: str) -> Path:
    """Write ``docs/NAME.md`` for each page, ``README.md`` for ``readme``."""
    for name, text in pages.items():
        path = root / "README.md" if name == "readme" else root / "docs" / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_running_text_is_that_of_paragraphs_and_lists() -> None:
    page = """\
# No heading. None at all.

One here
is. Two `in. code` is!

- A list
    1. inside. Again?

| no | table. None |
|---|---|
| no | cell. None |

**A note.** It goes on. [A link](x.md). ![no picture. None](x.png)

```bash
no code. None.
    --out no.
```

- In a list:

    ```console
    no code. None.
    ```

<!-- scores demo -->
    no code. None.
<!-- end -->

::: pipeline.Predictor
    options: none. At all.
"""
    assert said(page) == [
        (3, "One here is."),
        (4, f"Two {CODE} is!"),
        (6, "A list"),
        (7, "inside."),
        (7, "Again?"),
        (13, "A note."),
        (13, "It goes on."),
        (13, "A link."),
        (20, "In a list:"),
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It is 0.5 mm. Then, e.g. this, i.e. that.", 2),
        ("Buda et al. (2019) say so. See Fig. 3.", 2),
        ("It ends `a.b.` Not yet.", 1),
        ('He says "no." She (too.) does.', 3),
        ("One, two, ... and three.", 1),
        ("It ends.[^1] So does this.[^note]", 2),
        ("lgg.nii.gz is a file. basic_unet is not.", 2),
    ],
)
def test_sentences_end_where_readers_see_an_end(text: str, count: int) -> None:
    assert len(said(text)) == count


def test_words_are_counted_as_readers_do() -> None:
    (one,) = read_page(
        "The command `lgg-flair predict flair.nii.gz -o out` + a [link with words](x.md), **0.9 mm** - so."
    ).sentences
    assert (one.words, one.is_whole) == (10, True)
    assert [part.is_whole for part in read_page("- Python 3.11\n- It ends.\n- It goes on:").sentences] == [
        False,
        True,
        True,
    ]


def test_a_sentence_has_at_most_35_words(tmp_path: Path) -> None:
    write(
        tmp_path,
        readme=f"# Title\n\nShort. {sentence(LONGEST)}\nNext.",
        a=f"- {sentence(3)}\n- {sentence(LONGEST + 1)}",
    )
    assert found(tmp_path) == ['docs/a.md:2: 36 words in a sentence (at most 35): "word word word word word word ..."']


def test_sentences_of_all_pages_have_at_most_18_words_on_average(tmp_path: Path) -> None:
    write(tmp_path, readme=sentence(MEAN + 2), a=f"{sentence(MEAN - 2)}\n\n- word\n- word")
    assert found(tmp_path) == []
    write(tmp_path, a=f"{sentence(MEAN - 1)}\n\n- word\n- word")
    assert found(tmp_path) == ["2 sentences have 18.5 words on average (at most 18). Split some."]


@pytest.mark.parametrize(
    "text",
    [
        "It has rooms.",
        "The front door is open.",
        "All bars\nare met.",
        "What is told is true.",
        "The data at hand are few.",
        "It is likewise refused.",
        "Patients lost whole: two.",
        "It goes, by your leave.",
        "FLAIR stands in for T1.",
        "The name: of the folder.",
        "Here it is.",
        "It is a rule. Here is one.",
        "LGG patients here have skulls.",
        "See [here](readme.md).".replace("readme", "a"),
        "It is not only fast but\nsmall.",
        "It is fast — and small.",
        "It is fast—and small.",
        "Measured on 2026-11-26.",
        "The case report says so.",
        "The case report, a case report of 2019, says so.",
    ],
)
def test_private_words_are_refused(tmp_path: Path, text: str) -> None:
    (fault,) = found(write(tmp_path, a=f"# Title\n\n{text}"))
    assert fault.startswith('docs/a.md:3: "')


@pytest.mark.parametrize(
    "text",
    [
        "They are told apart.",
        "Each patient has two bars, and the error bars of the chart.",
        "It stays outdoors, and its name is `the rooms at hand`.",
        "The name of the folder is `x` (a folder).",
        "It belongs here.",
        "A case report of 2019 compares losses. The case report says so.",
        "Tables hold hashes:\n\n| at hand |\n|---|\n| abc1234 |",
        "Well-known, non-commercial, 192 x 192, defaced, deadbeef, 1234567, 0.1234567.",
        "The color is `#1f77b4`, the year 2019.\n\n    git show abc1234 — 2026-11-26",
    ],
)
def test_ordinary_words_are_not(tmp_path: Path, text: str) -> None:
    assert found(write(tmp_path, a=text)) == []


@pytest.mark.parametrize("text", ["On abc1234.", "On (`abc1234`).", f"On `git show {'0a' * 20}`."])
def test_commit_hashes_are_refused(tmp_path: Path, text: str) -> None:
    (fault,) = found(write(tmp_path, a=f"Text.\n\n{text}"))
    assert re.fullmatch(r"docs/a\.md:3: (abc1234|(0a){20}): a commit hash \(leave it out\)", fault)


def test_links_lead_to_files_and_headings_inside_of_docs(tmp_path: Path) -> None:
    page = """\
# One & two

## Twice
## Twice
## Named `code` {#own}

::: pipeline.Predictor

[a](#one-two) [a](#twice_1) [a](#own) [a](a.md) [a](deep/b.md#made) [a](#pipeline.Predictor.predict) ![a](a.svg)
[web](https://example.org/none) [web](//example.org/none) <mailto:a@example.org> <a id="set"></a>[a](#set)

[dead](none.md)
![dead](none.png) [dead](#one--two)
[dead](deep) [dead](/a.md)
[out](../LICENSE)

<img src="none.svg">

- [by name][ref]

[ref]: a.md#none
"""
    write(
        tmp_path,
        a=page,
        readme="[a](docs/a.md#one--two) [a](docs/a.md#twice-1) [a](LICENSE) [a](docs)\n\n[a](docs/a.md#one-two)",
    )
    (tmp_path / "docs" / "deep").mkdir()
    (tmp_path / "docs" / "deep" / "b.md").write_text('```bash exec="1"\ntrue\n```\n[a](../a.md#twice)')
    for name in ("LICENSE", "docs/a.svg"):
        (tmp_path / name).touch()
    assert found(tmp_path) == [
        "README.md:3: docs/a.md#one-two: a dead link (no such heading)",
        "docs/a.md:12: none.md: a dead link (no such file)",
        "docs/a.md:13: #one--two: a dead link (no such heading)",
        "docs/a.md:13: none.png: a dead link (no such file)",
        "docs/a.md:14: /a.md: a link from the root (expected one relative to the page)",
        "docs/a.md:14: deep: a dead link (no such file)",
        "docs/a.md:15: ../LICENSE: a link out of docs/ (name the file as code)",
        "docs/a.md:17: none.svg: a dead link (no such file)",
        "docs/a.md:19: a.md#none: a dead link (no such heading)",
    ]


def test_anchors_are_those_of_the_site_and_of_github() -> None:
    from markdown.extensions.toc import slugify

    titles = [
        "What is it?",
        "Train, then score",
        "FLAIR / T1",
        "`lgg-flair predict`",
        "A_b: c/d",
        "Größe  of voxels",
    ]
    page = read_page("\n\n".join(f"## {title}" for title in titles))
    assert anchors(page, on_site=True) == {slugify(title.replace("`", ""), "-") for title in titles}
    assert anchors(page, on_site=False) >= {
        "what-is-it",
        "train-then-score",
        "flair--t1",
        "lgg-flair-predict",
        "a_b-cd",
    }


def test_pages_can_be_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, a="It is told.", b=f"One two three. {sentence(9)}\n\nNo end")
    assert found(tmp_path, str(tmp_path / "docs" / "b.md"), "--summary") == []
    counts = "2 sentences, mean 6.0 words, longest 9"
    assert capsys.readouterr().out == f"{tmp_path}/docs/b.md: {counts}\n1 pages: {counts}\n"
    empty = tmp_path / "empty"
    assert found(empty, "--summary") == []
    assert capsys.readouterr().out == "0 pages: 0 sentences, mean 0.0 words, longest 0\n"


def test_every_page_is_read_and_the_status_is_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md", "docs/a.md", "docs/how-to/b.md"]
    names += ["bundles/basic_unet/docs/README.md", "bundles/WEIGHTS_LICENSE.md", "README.zh-CN.md"]
    for name in [*names, "NOTES.md"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("It is told.")
    faults = found(tmp_path)
    assert sorted(fault.partition(":")[0] for fault in faults) == sorted(names)
    assert run_cli(main, ["--root", str(tmp_path)]) == 2
    assert capfd.readouterr().err.startswith(f"error: {len(names)} faults in the texts:\n")


def test_what_is_no_page_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.md").write_bytes(b"Gr\xf6\xdfe")
    for name in ("none.md", "latin.md"):
        with pytest.raises(PipelineError, match=rf"{name}: cannot be read .* Name a Markdown page"):
            main([str(tmp_path / name)])


def test_the_pages_of_this_repository_hold() -> None:
    assert found(ROOT) == []


def test_comments_docstrings_and_messages_have_no_private_words() -> None:
    private = []
    for path in sorted(path for folder in PROGRAMS for path in (ROOT / folder).rglob("*.py") if path.stem != "prose"):
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                # A name in code may be `room`; a comment and a string are read by people.
                if token.type in (tokenize.COMMENT, tokenize.STRING):
                    text = " ".join(token.string.split())
                    private += [
                        f"{path}:{token.start[0]}: {word.search(text)}" for word, _ in WORDS if word.search(text)
                    ]
    assert private == []
