"""Every stored chapter was really executed and fits the page.

nbval itself (configured in pyproject.toml) re-runs the cells and compares.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support import notebooks

CHAPTERS = sorted((Path(__file__).parents[1] / "chapters").glob("*.ipynb"))


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.name)
def stored(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Path]:
    return json.loads(request.param.read_text(encoding="utf-8")), request.param


def test_there_are_chapters() -> None:
    assert CHAPTERS


def test_it_is_a_valid_notebook(stored: tuple[dict[str, Any], Path]) -> None:
    nbformat.validate(stored[0])


def test_every_cell_was_executed_in_order(
    stored: tuple[dict[str, Any], Path],
) -> None:
    assert notebooks.execution_faults(stored[0]) == []


def test_outputs_hold_on_any_machine(stored: tuple[dict[str, Any], Path]) -> None:
    assert notebooks.output_faults(stored[0]) == []


def test_code_fits_the_page(stored: tuple[dict[str, Any], Path]) -> None:
    assert notebooks.page_faults(stored[0], stored[1].stat().st_size) == []


def test_length_suits_one_sitting(stored: tuple[dict[str, Any], Path]) -> None:
    assert notebooks.length_faults(stored[0]) == []


def test_first_cell_sets_the_chapter_up(
    stored: tuple[dict[str, Any], Path],
) -> None:
    assert "setup_chapter()" in "".join(notebooks.code_cells(stored[0])[0]["source"])


# From here on: doctored notebooks, one fault each.


def _sound() -> dict[str, Any]:
    """A faultless notebook: eight cells that print, one with a picture."""
    cells: list[dict[str, Any]] = [
        {
            "cell_type": "code",
            "source": "print(1)",
            "execution_count": i,
            "metadata": {},
            "outputs": [{"output_type": "stream", "name": "stdout", "text": "1\n"}],
        }
        for i in range(1, 9)
    ]
    cells[7]["outputs"] = [
        {
            "output_type": "display_data",
            "data": {"image/png": "iVBORw0KGgo/tmp/x", "text/plain": "<Figure>"},
            "metadata": {},
        }
    ]
    cells.append({"cell_type": "markdown", "source": "two words", "metadata": {}})
    return {"cells": cells, "metadata": {"kernelspec": {"name": "python3"}}}


def _all_faults(notebook: dict[str, Any]) -> list[str]:
    return [
        *notebooks.execution_faults(notebook),
        *notebooks.output_faults(notebook),
        *notebooks.page_faults(notebook, 1000),
    ]


def test_the_sound_notebook_has_no_faults() -> None:
    assert _all_faults(_sound()) == []


def _print(text: str) -> Callable[[dict[str, Any]], None]:
    def doctor(notebook: dict[str, Any]) -> None:
        notebook["cells"][0]["outputs"][0]["text"] = text

    return doctor


def _never_run(nb: dict[str, Any]) -> None:
    nb["cells"][2]["execution_count"] = None


def _out_of_order(nb: dict[str, Any]) -> None:
    nb["cells"][2]["execution_count"] = 9


def _error(nb: dict[str, Any]) -> None:
    failed = {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
    nb["cells"][1]["outputs"] = [failed]


def _stderr(nb: dict[str, Any]) -> None:
    nb["cells"][1]["outputs"][0]["name"] = "stderr"


def _other_kernel(nb: dict[str, Any]) -> None:
    nb["metadata"]["kernelspec"]["name"] = "conda-env"


def _too_loose(nb: dict[str, Any]) -> None:
    for cell in nb["cells"][:3]:
        cell["metadata"]["tags"] = ["nbval-ignore-output"]


def _too_wide(nb: dict[str, Any]) -> None:
    nb["cells"][0]["source"] = "x = '" + "a" * 80 + "'"


def _too_long(nb: dict[str, Any]) -> None:
    nb["cells"][0]["source"] = "x = 1\n" * 16


@pytest.mark.parametrize(
    ("doctor", "fault"),
    [
        (_never_run, "not 1 to 8"),
        (_out_of_order, "not 1 to 8"),
        (_error, "stores an error"),
        (_stderr, "stderr"),
        (_other_kernel, "not python3"),
        (_print("see /home/ann/r1lite/x.py"), "'/home/'"),
        (_print("saved to /tmp/run"), "'/tmp/'"),
        (_print("lib/site-packages/torch"), "site-packages"),
        (_print(r"C:\Users\ann"), "Users"),
        (_print("<Line2D object at 0x7f3a5c1d2e80>"), "0x7f3a5c1d2e80"),
        (_print("\x1b[1;33mTODO\x1b[0m"), "terminal colours"),
        (_too_loose, "3 of 8 code cells are not compared"),
        (_too_wide, "86 columns"),
        (_too_long, "16 lines"),
    ],
)
def test_a_doctored_notebook_is_caught(
    doctor: Callable[[dict[str, Any]], None], fault: str
) -> None:
    notebook = copy.deepcopy(_sound())
    doctor(notebook)
    found = _all_faults(notebook)
    assert len(found) == 1
    assert fault in found[0]


def test_harmless_outputs_are_not_caught() -> None:
    notebook = _sound()
    _print("bits 0x1f, and/or, runs/nano/report.html, r1lite/tmp/x")(notebook)
    assert _all_faults(notebook) == []


def test_a_large_file_is_caught() -> None:
    assert notebooks.page_faults(_sound(), 300_000) == [
        "the file has 300000 bytes, allowed are 300000"
    ]


def test_a_short_chapter_is_caught() -> None:
    assert notebooks.length_faults(_sound()) == [
        "8 code cells, not 20 to 35",
        "2 words, not 1800 to 3000",
        "1 plots, not 3 to 6",
    ]


@pytest.mark.slow
def test_nbval_catches_drift_but_not_an_unexecuted_cell(tmp_path: Path) -> None:
    """The reason for the guard above, kept as a fact that is checked."""
    notebook = nbformat.v4.new_notebook()
    for count, said in ((1, "2\n"), (None, "")):
        cell = nbformat.v4.new_code_cell("print(1)", execution_count=count)
        if said:
            cell.outputs = [nbformat.v4.new_output("stream", text=said)]
        notebook.cells.append(cell)
    notebook.metadata = _sound()["metadata"]
    nbformat.write(notebook, tmp_path / "drift.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env"]
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider", "drift.ipynb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "1 failed, 1 passed" in result.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_outputs_do_not_depend_on_the_processor(path: Path) -> None:
    """Run again as an older processor would: other kernels, other rounding."""
    older = {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env"]
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(path)],
        cwd=path.parent,
        env={**os.environ, **older},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:]
