"""Check what readers read: the length of sentences, private words, dead links and commit hashes of README and docs.

Running text is that of paragraphs and list items: no code, no tables, no headings. A sentence counts for the mean where
it ends as one. Only links within the repository are followed.
"""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pipeline.command_line import run_cli
from pipeline.errors import PipelineError

PAGES = (
    "README*.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "examples/README.md",
    "docs/**/*.md",
    "bundles/**/*.md",
    "data_manifest/README.md",
)
LONGEST, MEAN = 35, 18
"""Words in a sentence, and their mean over all sentences."""
PRIVATE = {
    r"rooms": "place, section",
    r"(front )?doors?": "entry point, or its name",
    r"(the|all|both|no|set|sets|met|our) bars?|bars? (is|are|was|were) (met|set|missed|reached)": "target, limit",
    r"told(?! apart)": "said, known, shown",
    r"at hand": "available",
    r"likewise": "also, too",
    r"lost whole|lost entirely": "missed entirely",
    r"by (your|its|their) leave": "if you allow it",
    r"stand(s|ing)? in": "replace, or is in",
    r"(?<=[:(] )of the \w+": "name the thing again",
    r"(?-i:Here)|(click|see|measured|used|patients|as) here": "name the place",
    r"passed over": "skipped",
    r"not only\b.*\bbut": "two sentences",
    r"\w*—\w*": "a full stop or a colon in place of the dash",
    r"20\d\d-\d\d-\d\d": "no date of a run",
}
"""Patterns of words that readers may not know, and what to write in their place."""
WORDS = [(re.compile(rf"(?<![\w-])({found})(?![\w-])", re.IGNORECASE), said) for found, said in PRIVATE.items()]
HASH = re.compile(r"\b(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{7,}\b")
END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!et al)(?<!vs)(?<!cf)(?<!Fig)(?<!No)(?<!\.\.)[.!?][\"')\]”]*(?=\s|$)")
CODE, PICTURE = "\ufffc", "\ufffb"
"""Replace code and pictures in running text. Code counts as a word, a picture does not."""
ANY = "*"


@dataclass(frozen=True)
class Sentence:
    """A sentence, or an item of a list that is not a whole sentence.

    Args:
        line: Line of the page on which it begins, from 1 upwards.
        text: Its words; a code span is one character.
        is_whole: Whether it ends as sentences do.
    """

    line: int
    text: str
    is_whole: bool

    @property
    def words(self) -> int:
        """How many words it has; a code span counts as one."""
        return sum(any(letter.isalnum() or letter == CODE for letter in word) for word in self.text.split())


@dataclass(frozen=True)
class Page:
    """What is checked of a Markdown page.

    Args:
        sentences: Those of the running text.
        links: (line, target) of links and pictures, those of HTML as well.
        code: (line, text) of code spans.
        headings: Texts of the headings.
        names: Anchors that are no headings of the page: ``{#name}``, ``id=``, objects of mkdocstrings, and ``ANY``
            where a block makes headings when the site is built.
    """

    sentences: list[Sentence]
    links: list[tuple[int, str]]
    code: list[tuple[int, str]]
    headings: list[str]
    names: set[str]


class _Html(HTMLParser):
    """Links and anchors of HTML inside of Markdown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        self.names |= {value for name, value in attrs if name in ("id", "name") and value}


def parse(text: str) -> list[Token]:
    """The tokens of a page in Markdown."""
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def read_page(text: str) -> Page:
    """What is checked of a page in Markdown."""
    page = Page([], [], [], [], set())
    parents: list[str] = []
    for token in parse(text):
        line = token.map[0] + 1 if token.map else 1
        parents += [token.type] if token.nesting == 1 else []
        if token.type == "html_block":
            html = _Html(token.content)
            page.links.extend((line, link) for link in html.links)
            page.names.update(html.names)
        elif token.type == "fence" and "exec=" in token.info:
            page.names.add(ANY)
        elif token.type == "inline":
            _read_inline(page, token, line, parents[-1])
        if token.nesting == -1:
            parents.pop()
    return page


def _read_inline(page: Page, token: Token, line: int, parent: str) -> None:
    text = ""
    for child in token.children or ():
        on = line + text.count("\n")
        if child.type in ("link_open", "image"):
            page.links.append((on, str(child.attrs.get("href") or child.attrs.get("src") or "")))
        elif child.type == "code_inline":
            page.code.append((on, child.content))
        elif child.type == "html_inline":
            html = _Html(child.content)
            page.links.extend((on, link) for link in html.links)
            page.names.update(html.names)
        shown = {"text": child.content, "code_inline": CODE, "image": PICTURE, "softbreak": "\n", "hardbreak": "\n"}
        text += shown.get(child.type, "")
    if parent == "heading_open":
        title = "".join(child.content for child in token.children or () if child.type in ("text", "code_inline"))
        own = re.search(r"\s*\{[^}]*#([\w-]+)[^}]*\}$", title)
        page.headings.append(title[: own.start()] if own else title)
        page.names.update([own[1]] if own else [])
    elif text.startswith("::: "):  # an object of mkdocstrings
        page.names.add(text.split()[1])
    elif parent == "paragraph_open":
        page.sentences.extend(_sentences(re.sub(r"\{[^}]*\}|\[\^[^\]]*\]:?", "", text), line))


def _sentences(text: str, line: int) -> Iterator[Sentence]:
    for start, end in pairwise([0, *(match.end() for match in END.finditer(text)), len(text)]):
        part = text[start:end]
        begin = start + len(part) - len(part.lstrip())
        sentence = Sentence(line + text.count("\n", 0, begin), part.strip(), part.rstrip("\"')]”")[-1:] in (*".!?:",))
        if sentence.words:
            yield sentence


def anchors(page: Page, *, on_site: bool) -> set[str]:
    """The anchors of a page's headings, as the docs site names them or as GitHub does."""
    found, seen = set(page.names), Counter[str]()
    for heading in page.headings:
        if on_site:
            plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
            slug, joint = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()), "_"
        else:
            slug, joint = re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-"), "-"
        found.add(f"{slug}{joint}{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def faults(root: Path, path: Path, page: Page) -> Iterator[tuple[int, str]]:
    """Line and message of each fault of a page.

    Args:
        root: The repository.
        path: The page's file.
        page: What it holds.
    """
    for sentence in page.sentences:
        if sentence.words > LONGEST:
            start = " ".join(sentence.text.replace(CODE, "`...`").split()[:6])
            yield sentence.line, f'{sentence.words} words in a sentence (at most {LONGEST}): "{start} ..."'
        flat = " ".join(sentence.text.split())
        for pattern, remedy in WORDS:
            if found := pattern.search(flat):
                yield sentence.line, f'"{found[0]}": a private word (write: {remedy})'
    if (first := next((one for one in page.sentences if "case report" in one.text), None)) and re.search(
        r"\b(the|this)\s+case\s+report", first.text, re.IGNORECASE
    ):
        yield first.line, '"the case report" before it is introduced (write which one it is)'
    for line, text in [*((sentence.line, sentence.text) for sentence in page.sentences), *page.code]:
        if found := HASH.search(text):
            yield line, f"{found[0]}: a commit hash (leave it out)"
    for line, link in page.links:
        if fault := _link_fault(root, path, page, link):
            yield line, f"{link}: {fault}"


def _link_fault(root: Path, path: Path, page: Page, link: str) -> str | None:
    parts, docs = urlsplit(link), (root / "docs").resolve()
    on_site = path.resolve().is_relative_to(docs)
    if parts.scheme or parts.netloc:
        return None
    if parts.path.startswith("/"):
        return "a link from the root (expected one relative to the page)"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.exists() or (on_site and target.is_dir()):
        return "a dead link (no such file)"
    if on_site and not target.resolve().is_relative_to(docs):
        return "a link out of docs/ (name the file as code)"
    if parts.fragment and target.suffix == ".md":
        other = page if target == path else read_page(target.read_text(encoding="utf-8"))
        known, fragment = anchors(other, on_site=on_site), unquote(parts.fragment)
        if not {ANY, fragment} & known and not any(fragment.startswith(f"{name}.") for name in other.names):
            return "a dead link (no such heading)"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Check the pages.

    Args:
        argv: The arguments; None for those of the process.

    Raises:
        PipelineError: Pages have faults, each on a line, or a page cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.prose", description=__doc__.split("\n", 1)[0])
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="default: README and all docs")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: the working directory)")
    parser.add_argument("--summary", action="store_true", help="print how many sentences there are, and how long")
    args = parser.parse_args(argv)
    found, lengths = [], []
    paths = args.pages or sorted({path for pattern in PAGES for path in args.root.glob(pattern)})
    for path in paths:
        try:
            page = read_page(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PipelineError(f"{path}: cannot be read ({error}). Name a Markdown page.") from error
        found += [f"{path}:{line}: {message}" for line, message in sorted(faults(args.root, path, page))]
        own = [sentence.words for sentence in page.sentences if sentence.is_whole]
        lengths += own
        if args.summary:
            print(f"{path}: {_counts(own)}")
    if args.summary:
        print(f"{len(paths)} pages: {_counts(lengths)}")
    if lengths and (mean := sum(lengths) / len(lengths)) > MEAN:
        found.append(f"{len(lengths)} sentences have {mean:.1f} words on average (at most {MEAN}). Split some.")
    if found:
        raise PipelineError("\n".join([f"{len(found)} faults in the texts:", *found]))
    return 0


def _counts(lengths: Sequence[int]) -> str:
    mean = sum(lengths) / len(lengths) if lengths else 0
    return f"{len(lengths)} sentences, mean {mean:.1f} words, longest {max(lengths, default=0)}"


if __name__ == "__main__":
    sys.exit(run_cli(main))
