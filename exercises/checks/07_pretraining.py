"""Checks of chapter 7's exercises. They run the reader's file, nothing else."""

import math
import random
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

import r1lite
from r1lite.book.expect import close, expect, given
from r1lite.data.packing import PackedRows
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.hub import from_pretrained
from r1lite.training.optim import OptimConfig
from r1lite.training.pretrain import bits_per_byte

BASE = Path(r1lite.__file__).parents[1] / "chapters" / "fixtures" / "nano" / "base"


def check_7_1(mine: ModuleType) -> None:
    tokens, documents = mine.CODE_OF_TOKENS, mine.CODE_OF_DOCUMENTS
    given(tokens, documents)
    expect(
        all(0 <= x <= 1 for x in (tokens, documents)),
        "shares lie between 0 and 1, not in per cent",
    )
    expect(abs(tokens - 0.2) > 1e-3, "0.2 is the share of documents; count tokens")
    expect(
        abs(tokens - 8 / 28) > 1e-3, "that is the share of the dialogues, not of code"
    )
    close(
        tokens,
        20 / 28,
        "first number: take 100 documents and count the tokens of each domain",
        atol=1e-3,
    )
    expect(
        abs(documents - 0.02) > 1e-3,
        "a tenth of 0.2 is only nearly it: the dialogues' tokens count as well",
    )
    expect(
        abs(documents - 20 / 28) > 1e-3,
        "second number: it asks the other way round, from tokens to documents",
    )
    close(
        documents,
        20 / 820,
        "second number: p * 1000 is a fifth of p * 1000 + (1 - p) * 100",
        atol=1e-3,
    )


def _slow_merge(words: dict, pair: tuple) -> dict:
    out = {}
    for word, times in words.items():
        signs, i = [], 0
        while i < len(word):
            two = word[i : i + 2] == pair
            signs.append("".join(word[i : i + 1 + two]))
            i += 1 + two
        out[tuple(signs)] = times
    return out


def check_7_2(mine: ModuleType) -> None:
    step = mine.merge_step
    result = step({("l", "o", "w"): 5, ("l", "o"): 1})
    expect(
        isinstance(result, tuple) and len(result) == 2,
        "return two things: the pair and the new words",
    )
    expect(
        result[0] == ("l", "o"), f"the commonest pair is ('l', 'o'), not {result[0]}"
    )
    expect(
        result[1] == {("lo", "w"): 5, ("lo",): 1},
        f"after joining l and o the words are {result[1]}; times must stay",
    )
    rare = {("a", "b"): 9, ("c", "d"): 1, ("c", "d", "e"): 1, ("c", "d", "f"): 1}
    expect(
        step(rare)[0] == ("a", "b"),
        "a pair counts as often as its words stand in the text, not once a word",
    )
    twice = {("x", "y", "z", "x", "y"): 2, ("p", "q"): 3}
    expect(
        step(twice)[0] == ("x", "y"), "a pair that stands in a word twice counts twice"
    )
    tie = {("n", "o"): 4, ("a", "b"): 4, ("z", "a"): 4}
    expect(
        step(tie)[0] == ("a", "b"),
        "of equally common pairs the smallest is to be chosen",
    )
    for word, want in (("aaa", ("aa", "a")), ("aaaa", ("aa", "aa"))):
        got = step({tuple(word): 1})[1]
        expect(
            got == {want: 1},
            f"joining a a in {word} gives {want} from left to right, not {got}",
        )
    single = {("a",): 3, ("b",): 1}
    expect(step(single) == (None, single), "no pair at all: return None and the words")
    rng = random.Random(0)
    words = {tuple(rng.choices("abc", k=rng.randrange(1, 9))): i + 1 for i in range(60)}
    before = dict(words)
    for _ in range(6):
        pair, new = step(words)
        assert pair is not None
        expect(
            new == _slow_merge(words, pair), f"the words after joining {pair} are wrong"
        )
        words = new
    expect(before.keys() != words.keys(), "nothing was joined in six steps")


DOCUMENTS = [[100 * d + i for i in range(n)] for d, n in enumerate([5, 1, 30, 9], 1)]


def check_7_3(mine: ModuleType) -> None:
    tokenizer = SimpleNamespace(bos_id=0, eos_id=1)
    for seq_len in (7, 12, 60, 130):
        source = PackedRows(DOCUMENTS, tokenizer, seq_len, seed=3)  # type: ignore[arg-type]
        wanted = _stream(source, 4 * source.width)
        for index in range(4):
            found = mine.row(source, index)
            names = ("ids", "document ids", "positions")
            expect(
                isinstance(found, tuple) and len(found) == 3,
                "return three arrays: ids, document ids, positions",
            )
            for name, part in zip(names, found, strict=True):
                expect(
                    np.asarray(part).shape == (source.width,),
                    f"{name}: the shape is {np.asarray(part).shape}, "
                    f"{(source.width,)} is asked",
                )
                expect(
                    part.dtype == np.int64, f"{name}: int64 is asked, not {part.dtype}"
                )
            here = slice(index * source.width, (index + 1) * source.width)
            ids, documents = wanted[0][here], wanted[1][here]
            expect(
                np.array_equal(found[0], ids),
                f"ids of row {index} (width {source.width}) are wrong: a row goes on "
                "inside the document where the row before it stopped"
                + (
                    ", and over the end of an epoch"
                    if (index + 1) * source.width > source.tokens
                    else ""
                ),
            )
            expect(
                np.array_equal(found[1], documents),
                f"document ids of row {index} are wrong: epoch times the number of "
                "documents, plus the place in the epoch's order",
            )
            positions = _positions(documents)
            expect(
                np.array_equal(found[2], positions),
                "positions count from 0 where the row first shows a document, also "
                "when the document began in the row before",
            )


def _stream(source: PackedRows, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` ids and document ids, one after the other."""
    ids: list[int] = []
    owners: list[int] = []
    epoch = 0
    while len(ids) < count:
        order, _ = source._epoch(epoch)
        for place, document in enumerate(order):
            whole = [0, *DOCUMENTS[int(document)], 1]
            ids += whole
            owners += [epoch * len(order) + place] * len(whole)
        epoch += 1
    return np.array(ids[:count]), np.array(owners[:count])


def _positions(documents: np.ndarray) -> np.ndarray:
    places: list[int] = []
    for i, d in enumerate(documents):
        same = i > 0 and documents[i - 1] == d
        places.append(places[-1] + 1 if same else 0)
    return np.array(places)


def check_7_4(mine: ModuleType) -> None:
    scale = mine.lr_scale
    c = OptimConfig(warmup_steps=4, decay_fraction=0.5, final_lr=0.5)
    found = [scale(c, s, 20) for s in range(21)]
    expect(all(isinstance(x, int | float) for x in found), "return a number")
    expect(found[0] > 0, "step 0 has rate 0: it learns nothing; warm up from 1 / 4")
    close(found[:4], [0.25, 0.5, 0.75, 1.0], "the warm-up is wrong")
    close(found[4:10], [1.0] * 6, "between warm-up and decay the factor is 1")
    close(found[10], 1.0, "the decay begins at 1, half of the steps from the end")
    close(
        found[15],
        0.75,
        "halfway through the decay the factor is midway between 1 and final_lr: "
        "stretch the wave, do not cut it off",
    )
    close(found[20], 0.5, "at the end the factor is final_lr")
    close(
        scale(c, 25, 20), 0.5, "after the end it stays at final_lr: limit `done` to 1"
    )
    for total, fraction, last in ((50, 0.2, 0.1), (7, 1.0, 0.0), (300, 0.5, 0.1)):
        c = OptimConfig(warmup_steps=3, decay_fraction=fraction, final_lr=last)
        down = max(1, round(total * fraction))
        for s in range(3, total):
            done = max(0.0, (s - total + down) / down)
            want = last + (1 - last) * (1 + math.cos(math.pi * done)) / 2
            close(scale(c, s, total), want, f"step {s} of {total} is wrong")


def _scramble(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def check_7_5(mine: ModuleType) -> None:
    rng = np.random.default_rng(0)

    def numbers(n: int) -> np.ndarray:
        return rng.integers(0, 2**63, n, dtype=np.uint64)

    hashes, salts = numbers(30), numbers(8)
    found = np.asarray(mine.signature(hashes, salts, _scramble))
    expect(
        found.shape == (8,),
        f"the signature has shape {found.shape}: one entry a salt, the minimum over "
        "the hashes",
    )
    expect(found.dtype == np.uint64, f"uint64 is asked, not {found.dtype}")
    identity = mine.signature(
        np.array([5, 9], np.uint64), np.zeros(1, np.uint64), _same
    )
    expect(int(identity[0]) != 9, "the smallest is asked, not the largest")
    slow = [min(int(_scramble(np.array([h ^ s]))[0]) for h in hashes) for s in salts]
    raw = [int((_scramble(hashes) ^ s).min()) for s in salts]
    expect(found.tolist() != raw, "scramble after the XOR, not before it")
    expect(
        found.tolist() == slow,
        "the entries are wrong: scramble(hash ^ salt), the smallest over the hashes",
    )
    one = mine.signature(hashes[:1], salts, _scramble)
    expect(len(one) == 8, "a text of one run has a signature of full length, too")
    close(
        mine.estimate(
            np.array([1, 2, 3, 4], np.uint64), np.array([1, 9, 3, 9], np.uint64)
        ),
        0.5,
        "entries are compared place by place, and their share is a number from 0 to 1",
    )
    common, salts = numbers(200), numbers(2000)
    a, b = np.r_[common, numbers(100)], np.r_[common, numbers(100)]
    told = mine.estimate(
        mine.signature(a, salts, _scramble), mine.signature(b, salts, _scramble)
    )
    close(
        told, 0.5, "200 of 400 runs are shared, so about half should agree", atol=0.05
    )


def _same(x: np.ndarray) -> np.ndarray:
    return x


def check_7_6(mine: ModuleType) -> None:
    code, digits, why = mine.BITS_CODE, mine.BITS_DIGITS, mine.WHY
    given(code, digits, why)
    tokenizer, model = R1Tokenizer.load(BASE), from_pretrained(BASE).float()
    lines = (
        "def add(self, value): return self.value + value",
        "12345678 12345678 12345678",
    )
    for found, text in zip((code, digits), lines, strict=True):
        ids = [tokenizer.bos_id, *tokenizer.encode(text)]
        want = bits_per_byte(model, [ids], len(text.encode()), 128)
        expect(
            abs(found - want * math.log(2)) > 0.02,
            f"{found} is nats per byte; divide by ln 2",
        )
        a_token = want * len(text.encode()) * math.log(2) / (len(ids) - 1)
        expect(
            abs(found - a_token) > 0.02, f"{found} is nats per token; divide by bytes"
        )
        close(found, want, f"bits per byte of {text[:8]!r} are wrong", atol=0.011)
    expect(
        why in ("bytes", "context", "model"), f"{why!r} is none of the three answers"
    )
    expect(
        why != "context",
        "length is divided out in both measures; look at what is divided by",
    )
    expect(
        why == "bytes",
        "what the model has read is the same for both measures; compare 15 tokens for "
        "47 bytes with 26 for 26",
    )
