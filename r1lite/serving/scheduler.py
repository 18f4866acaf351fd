"""Who computes what in the next step.

Iteration-level scheduling (Orca, OSDI 2022) with chunked prefill (arXiv
2308.16369): a step is a budget of tokens. Decoding samples take one each, what is
left goes to prompts, in pieces if need be. When pages run out, the sample that
came last gives its pages back and is computed again later.

Order: rank = priority * aging + the step of arrival, fixed on arrival. Waiting
makes everybody older at the same speed, so no comparison ever changes, and only
those who came within (difference of priority * aging) steps can overtake. Nobody
starves: the first in rank always advances, is never preempted, and leaves.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

from r1lite.serving.pages import PagePool
from r1lite.serving.sequence import Sample, Work
from r1lite.serving.types import EngineConfig, EventKind

Note = Callable[[Sample, EventKind, int], None]


def _rank(sample: Sample) -> tuple[int, int, int]:
    return sample.rank


class Scheduler:
    """Waiting and running samples, and the pages they hold.

    note: told of every (sample, event, tokens).
    """

    def __init__(self, config: EngineConfig, pool: PagePool, note: Note) -> None:
        self.config, self.pool, self.note = config, pool, note
        self.waiting: list[Sample] = []  # by rank
        self.running: list[Sample] = []
        self.work: dict[Sample, Work] = {}
        self.preemptions = self.prefix_queries = self.prefix_hits = 0

    def add(self, sample: Sample) -> None:
        """Let it wait for its turn."""
        insort(self.waiting, sample, key=_rank)

    def plan(self) -> list[Work]:
        """The next step. Pages for it are taken; `advance` follows for each."""
        self.work, before = {}, self.preemptions
        self.budget = self.config.max_batch_tokens
        self.owed = len(self.running)
        in_order = sorted(self.running, key=_rank)
        for sample in [s for s in in_order if s.pending == 1]:
            self._schedule(sample)
        for sample in [s for s in in_order if s.pending > 1]:
            self._schedule(sample)
        # Admitting what was just thrown out would throw it out again.
        while self.waiting and self.budget and before == self.preemptions:
            if not self._admit(self.waiting[0]):
                break
        return list(self.work.values())

    def advance(self, sample: Sample, count: int) -> None:
        """`count` more of its tokens are computed; full pages become known."""
        sample.computed += count
        size = self.pool.page_size
        while sample.cacheable and (sample.named + 1) * size <= sample.computed:
            at = sample.named * size
            block = tuple(sample.tokens[at : at + size])
            page = sample.pages[sample.named]
            sample.prefix = self.pool.register(page, sample.prefix, block)
            sample.cacheable = sample.prefix is not None
            sample.named += 1

    def fork(self, sample: Sample, siblings: list[Sample]) -> None:
        """Siblings take over all that is computed; they share its pages."""
        sample.forked = True
        for sibling in siblings:
            for page in sample.pages:
                self.pool.share(page)
            sibling.pages = list(sample.pages)
            sibling.computed, sibling.named = sample.computed, sample.named
            sibling.prefix, sibling.cacheable = sample.prefix, sample.cacheable
            sibling.forked = sibling.running = sibling.seen_before = True
            self.running.append(sibling)

    def remove(self, sample: Sample) -> None:
        """It is finished or aborted: its pages are free at once."""
        if sample.running:
            self._stop(sample)
        elif sample in self.waiting:
            self.waiting.remove(sample)

    def _schedule(self, sample: Sample) -> None:
        """Give a running sample its part of the step, if it can have one."""
        if not sample.running or not self.budget:
            return
        self.owed -= 1
        # A guess must not take the token of somebody who also runs.
        drafts = int(sample.draft is not None and self.budget > self.owed + 1)
        if drafts and not self._has_room(sample, sample.computed + 2):
            drafts = 0  # a guess is not worth a preemption
        count = min(sample.pending, self.budget - drafts) + drafts
        copy = self._reserve(sample, sample.computed + count)
        if sample.running:
            self._put(Work(sample, sample.computed, count, drafts, copy))

    def _put(self, work: Work) -> None:
        self.work[work.sample] = work
        self.budget -= work.count

    def _admit(self, sample: Sample) -> bool:
        """Start a waiting sample if there is a place and room for its tokens."""
        taken = sum(s.slots for s in self.running)
        if taken + sample.slots > self.config.max_running:
            return False
        pages, prefix = self.pool.match(sample.tokens)
        if self._pages(len(sample.tokens) + 1) - len(pages) > self.pool.available:
            self.pool.release(pages)
            return False
        self.waiting.pop(0)
        sample.pages, sample.prefix, sample.named = pages, prefix, len(pages)
        sample.computed = len(pages) * self.pool.page_size
        if not sample.seen_before:
            self.prefix_queries += len(sample.tokens)
            self.prefix_hits += sample.computed
            sample.request.cached_tokens = sample.computed
        sample.running = sample.seen_before = True
        self.running.append(sample)
        self.note(sample, "scheduled", sample.computed)
        self._schedule(sample)
        return True

    def _reserve(self, sample: Sample, length: int) -> tuple[int, int] | None:
        """Take the pages for its first `length` tokens; who came last gives way.

        Returns the page to copy first, if the one it writes to is shared. The
        sample runs no more if it was the last one itself.
        """
        while not self._has_room(sample, length):
            last = max(self.running, key=_rank)
            self._preempt(last)
            if last is sample:
                return None
        copy = None
        if self._writes_shared(sample):
            place = sample.computed // self.pool.page_size
            copy = (sample.pages[place], self.pool.take())
            self.pool.release([copy[0]])
            sample.pages[place] = copy[1]
        while len(sample.pages) < self._pages(length):
            sample.pages.append(self.pool.take())
        return copy

    def _has_room(self, sample: Sample, length: int) -> bool:
        needed = self._pages(length) - len(sample.pages)
        return needed + self._writes_shared(sample) <= self.pool.available

    def _writes_shared(self, sample: Sample) -> bool:
        """Whether the page it writes to next is a sibling's too."""
        place = sample.computed // self.pool.page_size
        return place < len(sample.pages) and self.pool.refs[sample.pages[place]] > 1

    def _pages(self, length: int) -> int:
        return -(-length // self.pool.page_size)

    def _preempt(self, sample: Sample) -> None:
        self.preemptions += 1
        dropped = self.work.pop(sample, None)
        self.budget += dropped.count if dropped else 0
        self._stop(sample)
        self.add(sample)
        self.note(sample, "preempted", 0)

    def _stop(self, sample: Sample) -> None:
        self.running.remove(sample)
        self.pool.release(sample.pages)
        sample.running = False
        sample.forget()
