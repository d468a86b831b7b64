"""Prose that every Python installation carries, as training, calibration and held-out text.

Two sources: the language topics behind ``help()`` (``pydoc_data.topics``) and the docstrings of the standard
library.  Both are part of Python's documentation and fall under the PSF licence (see ``NOTICE.txt``).

A *document* is one topic or one docstring.  The topics quote one another and many docstrings are copies, so
:func:`dedupe` also drops repeated paragraphs: without that, the held-out part would contain text that was
trained on.
"""

from __future__ import annotations

import ast
import inspect
import random
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SEPARATOR = "\n\n\n"
"""What stands between two documents in a text file; no document contains it."""

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3", "ensurepip"}
)
"""Folders of the standard library that are left out: tests, bundled packages and third-party code."""

MIN_DOCSTRING = 80
"""Docstrings must be longer than this many characters."""

MIN_PARAGRAPH = 60
"""Only paragraphs at least this long count as repetitions: short ones ("Example:") recur everywhere."""


@dataclass(frozen=True)
class Split:
    """Documents for training and documents that training never sees."""

    train: list[str]
    heldout: list[str]


def clean(text: str) -> str:
    """Normalise line ends, trailing blanks and runs of blank lines, so that no document holds a separator."""
    paragraphs: list[list[str]] = [[]]
    for line in text.expandtabs().splitlines():
        line = line.rstrip()
        if line:
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)


def topic_documents() -> list[str]:
    """Return the language topics behind ``help()``, ordered by name."""
    from pydoc_data.topics import topics

    return [clean(text) for _, text in sorted(topics.items())]


def docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of a module's source, of the module first and then in order of appearance."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) > MIN_DOCSTRING:
                yield clean(inspect.cleandoc(text))


def docstring_documents(root: Path | None = None) -> list[str]:
    """Return the docstrings of all modules under ``root`` (the standard library if None), ordered by path."""
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    documents: list[str] = []
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1]):
            continue
        try:
            documents.extend(docstrings(path.read_text(encoding="utf-8")))
        except (SyntaxError, UnicodeDecodeError):
            continue
    return documents


def dedupe(documents: Iterable[str]) -> list[str]:
    """Drop repeated documents and repeated long paragraphs, keeping the first of each and the order.

    Texts are compared without regard to white space and case.  A document of which nothing long remains goes.
    """
    seen: set[str] = set()
    kept: list[str] = []
    for document in documents:
        whole = " ".join(document.lower().split())
        if not whole or whole in seen:
            continue
        seen.add(whole)
        paragraphs: list[str] = []
        new = False
        for paragraph in document.split("\n\n"):
            key = " ".join(paragraph.lower().split())
            if len(key) >= MIN_PARAGRAPH:
                if key in seen and key != whole:
                    continue
                seen.add(key)
                new = True
            paragraphs.append(paragraph)
        if new or len(whole) < MIN_PARAGRAPH:
            kept.append("\n\n".join(paragraphs))
    return kept


def shuffled(documents: Sequence[str], seed: int) -> list[str]:
    """Return the documents in an order that depends on the seed only."""
    order = list(documents)
    random.Random(seed).shuffle(order)
    return order


def take(documents: Iterable[str], characters: int) -> list[str]:
    """Return whole documents from the front until they hold at least so many characters."""
    taken: list[str] = []
    total = 0
    for document in documents:
        if total >= characters:
            break
        taken.append(document)
        total += len(document) + len(SEPARATOR)
    return taken


def split(documents: Sequence[str], heldout_characters: int, seed: int) -> Split:
    """Shuffle the documents and set the first ones, about so many characters in all, aside as held-out."""
    order = shuffled(documents, seed)
    heldout = take(order, heldout_characters)
    return Split(train=order[len(heldout) :], heldout=heldout)


def join(documents: Iterable[str]) -> str:
    """Join documents to the text of one file."""
    return SEPARATOR.join(documents) + "\n"


def load(text: str) -> list[str]:
    """Undo :func:`join`."""
    return text.removesuffix("\n").split(SEPARATOR)


def python_documents() -> list[str]:
    """Return all documents of the running Python, de-duplicated, in a fixed order."""
    return dedupe([*topic_documents(), *docstring_documents()])
