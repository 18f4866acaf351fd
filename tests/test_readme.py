"""The README says what is there: its map, its commands and its code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from support.live import FIXTURE, live
from typer.testing import CliRunner

from r1lite.book import load_book
from r1lite.cli import cli

REPO = Path(__file__).parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_map_is_the_map_of_the_book() -> None:
    rows = re.findall(
        r"^\| (\d\d) \| (?:\[(.+)\]\((.+)\)|(.+)) \| (\w+) \|$", README, re.M
    )
    found = [(int(n), a or b, link, status) for n, a, link, b, status in rows]
    wanted = [
        (c.number, c.title, f"chapters/{c.notebook}" if c.written else "", c.status)
        for c in load_book().chapters
    ]
    assert found == wanted


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README)
    files = [a or b for a, b in links if not (a or b).startswith("http")]
    assert len(files) >= 3
    assert [f for f in files if not (REPO / f).exists()] == []


def test_every_make_target_named_exists() -> None:
    named = set(re.findall(r"make ([a-z]+)", README))
    makefile = (REPO / "Makefile").read_text()
    assert {"run", "test", "book", "lint"} <= named
    assert {t for t in named if f"\n{t}:" not in makefile} == set()


def test_every_command_and_option_named_exists() -> None:
    commands = "run|chat|eval|check|plan|serve|quantize|bench"
    pattern = rf"(?:\.venv/bin/)?r1lite ({commands})\b([^\n`]*)"
    calls = re.findall(pattern, README)
    assert len(calls) >= 5
    for command, rest in calls:
        shown = CliRunner().invoke(cli, [command, "--help"], terminal_width=200).output
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in shown, f"r1lite {command} has no {option}"


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = EXAMPLES[-1]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["logits"].shape == (2, 16, 1024)  # type: ignore[attr-defined]
    assert (tmp_path / "out" / "config.json").exists()


def test_the_client_example_asks_a_real_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = EXAMPLES
    address = "http://127.0.0.1:8000"
    assert address in code
    # Served under the run's name, as runs/nano/final is.
    shutil.copytree(FIXTURE, tmp_path / "nano" / "final")
    with live(directory=tmp_path / "nano" / "final") as server:
        exec(code.replace(address, server.url), {})
    assert capsys.readouterr().out.split() == ["7*4=8", "8+9=7", "7"]


def test_no_text_file_of_the_repository_names_the_authors_machine() -> None:
    kinds = {".md", ".toml", ".yml", ".py", ".j2", ".css"}
    folders = ("r1lite", "tests", "chapters")
    files = [p for folder in folders for p in (REPO / folder).rglob("*")]
    files += [*REPO.iterdir(), *(REPO / ".ci").iterdir()]
    texts = [p for p in files if p.suffix in kinds or p.name in ("Makefile", "run")]
    assert len(texts) > 50
    home = re.compile(r"(?<![\w.])/(?:home|root|Users)/\w+/")
    doctored = REPO / "tests" / "test_notebooks.py"  # wrong on purpose
    found = [p for p in texts if p != doctored and home.search(p.read_text("utf-8"))]
    assert found == []
