"""The exercise machine on a made-up group: TODO, FAIL, PASS, and every accident."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from workbook.conftest import write_answer

from r1lite.book import check
from r1lite.errors import R1Error
from r1lite.workbook.checking import Outcome, examine, select_exercises
from r1lite.workbook.exercise import (
    exercise_folder,
    exercise_groups,
    parse_group,
)

STUB_1_2 = 'raise NotImplementedError("1.2: normalise")'


def states(folder: Path, numbers: str | None = None) -> list[str]:
    return [o.state for o in outcomes(folder, numbers)]


def outcomes(folder: Path, numbers: str | None = None) -> list[Outcome]:
    chosen = select_exercises(exercise_groups(folder), numbers)
    return [o for group, few in chosen for o in examine(folder, group, few)]


def test_the_stub_keeps_prose_and_hides_hints_and_solution(folder: Path) -> None:
    text = (folder / "01_toy.py").read_text()
    assert "# How many sides has a die?" in text
    assert "SIDES = None  # your number" in text
    assert "    " + STUB_1_2 in text
    for secret in ("HINT", "six", "SOLUTION", "rsqrt", "# STUB", "# END", "SIDES = 6"):
        assert secret not in text
    solution = (folder / "solutions" / "01_toy.py").read_text()
    assert "rsqrt" in solution and "NotImplementedError" not in solution


def test_the_header_is_read(folder: Path) -> None:
    one, two, _ = parse_group(folder / "source" / "01_toy.py").exercises
    assert (one.number, one.title, one.kind) == ("1.1", "A number", "predict")
    assert (one.level, one.minutes, one.swaps) == (1, 2, None)
    assert one.hints == ("count them", "more than five", "six")
    assert two.swaps == "r1lite.attention.norm.RMSNorm.forward"


def test_untouched_stubs_are_todo(folder: Path) -> None:
    assert states(folder) == ["TODO", "TODO", "TODO"]


def test_solutions_pass(folder: Path) -> None:
    solution = (folder / "solutions" / "01_toy.py").read_text()
    (folder / "01_toy.py").write_text(solution)
    assert states(folder) == ["PASS", "PASS", "PASS"]


def test_one_answer_leaves_the_others_todo(folder: Path) -> None:
    write_answer(folder, "SIDES = None", "SIDES = 6")
    assert states(folder) == ["PASS", "TODO", "TODO"]
    assert states(folder, "1.1") == ["PASS"]


def test_a_wrong_answer_names_the_mistake(folder: Path) -> None:
    write_answer(folder, "SIDES = None", "SIDES = 8")
    write_answer(
        folder,
        STUB_1_2,
        "return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)",
    )
    found = outcomes(folder)
    assert [o.state for o in found] == ["FAIL", "FAIL", "TODO"]
    assert "a die is a cube (found 8, expected 6)" in found[0].message
    assert "eps stands outside the root" in found[1].message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("pass", ["the output", "`return` missing"]),
        ("return x[:, :2]", ["the shape is (3, 2), (3, 5) is asked"]),
        ("return x @ x", ["your code raised RuntimeError", "(line "]),
        ("return nonsense", ["NameError", "nonsense"]),
        ("raise SystemExit(0)", ["SystemExit"]),
        ("return x * float('nan')", ["found nan"]),
        ("return torch.bincount(x)", ["NotImplementedError", "bincount", "(line "]),
        ("return x.long().softmax(-1)", ["NotImplementedError", "softmax", "(line "]),
    ],
)
def test_every_accident_is_a_fail(folder: Path, body: str, words: list[str]) -> None:
    write_answer(folder, STUB_1_2, body)
    (found,) = outcomes(folder, "1.2")
    assert found.state == "FAIL"
    for word in words:
        assert word in found.message


def test_a_todo_inside_own_code_is_still_todo(folder: Path) -> None:
    write_answer(folder, STUB_1_2, 'y = x\n    raise NotImplementedError("later")')
    assert states(folder, "1.2") == ["TODO"]


def test_a_check_may_say_todo(folder: Path) -> None:
    """With `given`, or by a raise of its own."""
    check = folder / "checks" / "01_toy.py"
    write_answer(folder, STUB_1_2, "return None")
    own = "if found is None:\n        raise NotImplementedError"
    for line in ("r1lite.book.expect.given(found)", own):
        text = check.read_text()
        head = "import r1lite.book.expect\n" if "given" in line else ""
        place = "    found = mine.rms_forward(norm, x)\n"
        check.write_text(head + text.replace(place, f"{place}    {line}\n"))
        assert states(folder, "1.2") == ["TODO"]
        check.write_text(text)


def test_a_syntax_error_fails_what_was_touched(folder: Path) -> None:
    write_answer(folder, "SIDES = None", "SIDES = (")
    found = outcomes(folder)
    assert {o.state for o in found} == {"FAIL"}  # none can be loaded
    assert "is not Python" in found[0].message


def test_an_error_above_the_exercises_is_not_todo(folder: Path) -> None:
    write_answer(folder, "import torch\n", "import torchh\n")
    assert {o.state for o in outcomes(folder)} == {"FAIL"}
    assert "torchh" in outcomes(folder)[0].message


def test_a_lost_header_is_said(folder: Path) -> None:
    write_answer(folder, "# %% 1.3 ", "# 1.3 ")
    assert "'# %% 1.3 | …' is gone" in outcomes(folder, "1.3")[0].message


def test_an_endless_loop_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1lite.workbook.checking.SECONDS", 0.3)
    write_answer(folder, STUB_1_2, "while True:\n        pass")
    began = time.monotonic()
    (found,) = outcomes(folder, "1.2")
    assert found.state == "FAIL" and "endless loop" in found.message
    assert time.monotonic() - began < 10


def test_an_endless_loop_outside_a_function_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1lite.workbook.checking.SECONDS", 0.3)
    write_answer(folder, "SIDES = None", "while True:\n    SIDES = 6\n")
    assert "still loading" in outcomes(folder, "1.1")[0].message


def test_an_edit_counts_at_once(folder: Path) -> None:
    write_answer(folder, "SIDES = None", "SIDES = 5")
    assert states(folder, "1.1") == ["FAIL"]
    write_answer(folder, "SIDES = 5", "SIDES = 6")
    assert states(folder, "1.1") == ["PASS"]


def test_a_check_leaves_the_readers_random_numbers_alone(folder: Path) -> None:
    write_answer(folder, "SIDES = None", "SIDES = 6")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    outcomes(folder)
    assert torch.equal(torch.rand(4), expected)


def test_check_prints_for_a_notebook(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_answer(folder, "SIDES = None", "SIDES = 8")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as JupyterLab's kernel does
    check("1")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "FAIL  1.1 A number (level 1, 2 min)" in printed
    assert "a die is a cube" in printed
    assert "TODO  1.2" in printed
    check("9.9")
    printed = capsys.readouterr().out
    assert printed == (
        "r1lite: exercise: there is no '9.9'; choose from 1.1, 1.2, 1.3\n"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| predict |", "| guess |"),
        ("level 1", "level 7"),
        ("# END\n", ""),
        ("1.1 |", "one |"),
    ],
)
def test_a_source_out_of_form_is_refused(folder: Path, old: str, new: str) -> None:
    path = folder / "source" / "01_toy.py"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(R1Error, match="correct it"):
        exercise_groups(folder)


def test_a_missing_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("R1LITE_EXERCISES", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(R1Error, match="R1LITE_EXERCISES"):
        exercise_folder()
