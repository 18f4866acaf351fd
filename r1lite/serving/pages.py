"""Who holds which page of the cache: counts, a free list, known prefixes.

A page is room for `page_size` tokens in every layer. Nothing here touches a
tensor: pages are numbers. A page whose holders are gone may still be known to
hold a prefix; it then stays idle until a prompt begins with that prefix or the
room is needed, least recently used first (as in vLLM).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Hash = Callable[[int, tuple[int, ...]], int]


@dataclass(frozen=True, eq=False)
class Prefix:
    """What a full page holds: its own tokens, after those of its parent.

    `key` chains the hashes, so one number stands for the whole prefix.
    """

    key: int
    tokens: tuple[int, ...]
    parent: Prefix | None


def chain_hash(parent: int, tokens: tuple[int, ...]) -> int:
    """The key of a page whose parent has the key `parent` (0 for none)."""
    return hash((parent, tokens))


class PagePool:
    """Hands out pages and takes them back; every page is in one of three states.

    In use (`refs` > 0), idle (nobody holds it, but its prefix is known), free.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        prefix_cache: bool = True,
        hash_fn: Hash = chain_hash,
    ) -> None:
        self.page_size, self.prefix_cache, self.hash_fn = (
            page_size,
            prefix_cache,
            hash_fn,
        )
        self.free = list(range(num_pages - 1, -1, -1))
        self.refs = [0] * num_pages
        self.holds: list[Prefix | None] = [None] * num_pages
        self.idle: OrderedDict[int, None] = OrderedDict()  # oldest first
        self.index: dict[int, int] = {}  # key of a prefix -> its page

    @property
    def available(self) -> int:
        """Pages that `take` can hand out."""
        return len(self.free) + len(self.idle)

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return len(self.refs) - self.available

    def take(self) -> int:
        """A page for one holder. Forgets the oldest idle prefix if it must.

        The caller looks at `available` first: IndexError or KeyError if none.
        """
        if self.free:
            page = self.free.pop()
        else:
            page, _ = self.idle.popitem(last=False)
            self._forget(page)
        self.refs[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more holder of a page that is in use or idle."""
        if not self.refs[page]:
            del self.idle[page]
        self.refs[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder less of each. Last page first, so that a prefix is
        forgotten from its end: a page outlives those that continue it.
        """
        for page in reversed(pages):
            self.refs[page] -= 1
            assert self.refs[page] >= 0, f"page {page} was released twice"
            if self.refs[page] == 0:
                if self.holds[page] is None:
                    self.free.append(page)
                else:
                    self.idle[page] = None

    def match(self, tokens: Sequence[int]) -> tuple[list[int], Prefix | None]:
        """The pages that hold the longest known prefix of `tokens`, now shared.

        At least one token stays out: the model must compute something.
        """
        pages: list[int] = []
        parent: Prefix | None = None
        size = self.page_size
        for start in range(0, len(tokens) - size, size):
            block = tuple(tokens[start : start + size])
            page = self._find(parent, block)
            if page is None:
                break
            self.share(page)
            pages.append(page)
            parent = self.holds[page]
        return pages, parent

    def register(
        self, page: int, parent: Prefix | None, tokens: tuple[int, ...]
    ) -> Prefix | None:
        """Make known that `page` now holds `tokens` after `parent`.

        Returns the known prefix, which may be another page's with the same
        tokens. None when another prefix has the same key: then this one, and
        what follows it, stays unknown.
        """
        known = self._find(parent, tokens)
        if known is not None:
            return self.holds[known]
        key = self._key(parent, tokens)
        if key in self.index:
            self._drop_if_orphan(self.index[key])
        if not self.prefix_cache or key in self.index:
            return None
        self.index[key] = page
        self.holds[page] = prefix = Prefix(key, tokens, parent)
        return prefix

    def _key(self, parent: Prefix | None, tokens: tuple[int, ...]) -> int:
        return self.hash_fn(parent.key if parent else 0, tokens)

    def _find(self, parent: Prefix | None, tokens: tuple[int, ...]) -> int | None:
        """The page of this very prefix. Equal keys are not trusted: other
        tokens may have the same one, by chance or by a user's design.
        """
        page = self.index.get(self._key(parent, tokens))
        if page is None:
            return None
        held = self.holds[page]
        same = held is not None and held.tokens == tokens and held.parent is parent
        return page if same else None

    def _drop_if_orphan(self, page: int) -> None:
        """Forget a prefix whose parent is forgotten: nobody can find it again."""
        held = self.holds[page]
        if held is None or held.parent is None:
            return
        above = self.index.get(held.parent.key)
        if above is not None and self.holds[above] is held.parent:
            return
        self._forget(page)
        if page in self.idle:
            del self.idle[page]
            self.free.append(page)

    def _forget(self, page: int) -> None:
        prefix = self.holds[page]
        if prefix is not None:
            del self.index[prefix.key]
            self.holds[page] = None
