"""`r1lite check` as a reader uses it: hints, solution, reset, watch, the table."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner
from workbook.conftest import write_answer

from r1lite.cli import cli
from r1lite.errors import R1Error
from r1lite.workbook import generate, practice, progress


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["check", *words], terminal_width=120)
    return done.exit_code, done.output


def said(action: object, *args: object) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    action(console, *args)  # type: ignore[operator]
    return console.export_text()


def test_the_table_lists_everything(folder: Path) -> None:
    write_answer(folder, "SIDES = None", "SIDES = 6")
    text = said(practice.show_state, None)
    assert "1.1 A number" in text and "PASS" in text
    assert text.count("TODO") == 2
    assert text.count("--mine") == 1
    assert progress.read(folder)["1.1"]["passed"] is True


def test_hints_come_one_at_a_time_and_are_counted(folder: Path) -> None:
    first = said(practice.show_hint, "1.1")
    assert "hint 1 of 3: count them" in first and "six" not in first
    said(practice.show_hint, "1.1")
    third = said(practice.show_hint, "1.1")
    assert "hint 3 of 3: six" in third and "--give-up" in third
    said(practice.show_hint, "1.1")
    assert progress.read(folder)["1.1"]["hints"] == 3
    assert "3 of 3" in said(practice.show_state, None)


def test_giving_up_shows_the_solution_and_writes_nothing(folder: Path) -> None:
    before = (folder / "01_toy.py").read_text()
    assert "rsqrt" in said(practice.show_solution, "1.2")
    assert (folder / "01_toy.py").read_text() == before
    assert "solution seen" in said(practice.show_state, None)


def test_reset_touches_one_exercise_only(folder: Path) -> None:
    stub = (folder / "01_toy.py").read_text()
    write_answer(folder, "SIDES = None", "SIDES = 6")
    changed = (folder / "01_toy.py").read_text()
    write_answer(folder, "return x[len(x)]", "return x[-1]")
    said(practice.start_again, "1.3")
    assert (folder / "01_toy.py").read_text() == changed
    said(practice.start_again, "1.1")
    assert (folder / "01_toy.py").read_text() == stub


def test_reset_refuses_what_it_cannot_do(folder: Path) -> None:
    write_answer(folder, "# %% 1.3 ", "# 1.3 ")
    before = (folder / "01_toy.py").read_text()
    with pytest.raises(R1Error, match=r"'# %% 1\.3 \| …' is gone; put it back"):
        said(practice.start_again, "1.3")
    assert (folder / "01_toy.py").read_text() == before
    (folder / "01_toy.py").unlink()
    with pytest.raises(R1Error, match=r"01_toy\.py: cannot be read"):
        said(practice.start_again, "1.1")


def test_a_full_disk_costs_no_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_answer(folder, "SIDES = None", "SIDES = 6")
    before = (folder / "01_toy.py").read_text()

    def half(path: Path, text: str, **how: str) -> None:
        path.write_bytes(text.encode()[:9])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space"):
        said(practice.start_again, "1.3")
    with pytest.raises(OSError, match="no space"):
        generate.generate(folder, force=True)
    assert (folder / "01_toy.py").read_text() == before


def test_watch_checks_again_when_a_file_is_saved(folder: Path) -> None:
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            write_answer(folder, "SIDES = None", "SIDES = 60000")
            path = folder / "01_toy.py"
            os.utime(path, ns=(1, 1))

    text = said(practice.watch, "1.1", 4, sleep)
    assert text.count("TODO") == 1
    assert text.count("FAIL") == 1


def test_the_command_exits_1_on_a_fail_and_2_on_a_slip(folder: Path) -> None:
    write_answer(folder, "SIDES = None", "SIDES = 8")
    code, text = run("1.1")
    assert code == 1 and "a die is a cube" in text
    assert run("1.2")[0] == 0
    call = [sys.executable, "-c", "from r1lite.cli import app; app()", "check"]
    done = subprocess.run([*call, "--hint"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "r1lite: --hint: name one exercise, e.g. r1lite check 1.2 --hint\n"
    )


def test_a_damaged_record_costs_nothing_but_marks(folder: Path) -> None:
    (folder / progress.FILE).write_text("{half")
    assert progress.read(folder) == {}
    said(practice.show_hint, "1.1")
    assert json.loads((folder / progress.FILE).read_text())["1.1"]["hints"] == 1


def test_generate_never_overwrites_a_readers_work(folder: Path) -> None:
    write_answer(folder, "SIDES = None", "SIDES = 6")
    mine = (folder / "01_toy.py").read_text()
    assert generate.generate(folder) == [
        "kept 01_toy.py: it was changed (--force writes it again)"
    ]
    assert (folder / "01_toy.py").read_text() == mine
    assert generate.generate(folder, force=True) == ["wrote 01_toy.py"]
    assert generate.generate(folder) == []


@pytest.mark.parametrize("option", ["--hint", "--give-up", "--reset"])
def test_options_take_one_exercise(folder: Path, option: str) -> None:
    done = CliRunner().invoke(cli, ["check", "1", option])
    assert "name one exercise" in str(done.exception)
