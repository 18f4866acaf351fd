"""What every chapter uses: a fixed start, `show`, `agree`, `check`, and the map."""

from __future__ import annotations

from r1lite.book.agree import agree
from r1lite.book.chapters import Book, Chapter, chapter_of, load_book
from r1lite.book.exercises import check
from r1lite.book.setup import setup_chapter
from r1lite.book.show import show

__all__ = [
    "Book",
    "Chapter",
    "agree",
    "chapter_of",
    "check",
    "load_book",
    "setup_chapter",
    "show",
]
