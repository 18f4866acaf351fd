"""What a stored chapter must look like, as functions that return the faults.

nbval runs a notebook and compares outputs, but it lets a cell that was never
executed pass whatever it prints, and it knows nothing of the reader's page.
"""

from __future__ import annotations

import re
from typing import Any

MAX_COLUMNS = 79
MAX_LINES = 15
MAX_BYTES = 300_000
CODE_CELLS = range(20, 36)
WORDS = range(1800, 3001)
PLOTS = range(3, 7)

# A place on the author's machine, or a memory address: wrong everywhere else.
MACHINE = re.compile(
    r"(?<![\w.])/(?:work|tmp|root|home|Users|usr|opt|var)/"
    r"|site-packages|[A-Z]:\\Users|\b0x[0-9a-f]{6,}"
)
# nbval does not compare the output of cells with these tags.
UNCHECKED = {"nbval-ignore-output", "nbval-skip"}

Notebook = dict[str, Any]


def execution_faults(notebook: Notebook) -> list[str]:
    """Cells never run, run out of order, failed, or run by another kernel."""
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    faults = []
    if counts != list(range(1, len(counts) + 1)):
        faults.append(f"execution counts are {counts}, not 1 to {len(counts)}")
    for i, output in _outputs(notebook):
        if output["output_type"] == "error":
            faults.append(f"code cell {i} stores an error: {output['ename']}")
        if output.get("name") == "stderr":
            faults.append(f"code cell {i} writes to stderr")
    kernel = notebook["metadata"].get("kernelspec", {}).get("name")
    if kernel != "python3":
        faults.append(f"the kernel is {kernel}, not python3")
    return faults


def output_faults(notebook: Notebook) -> list[str]:
    """Outputs that hold only on one machine, or that nothing compares."""
    faults = []
    for i, output in _outputs(notebook):
        hit = MACHINE.search(_text(output))
        if hit:
            faults.append(f"code cell {i} prints a machine's own {hit.group()!r}")
        if "\x1b" in _text(output):
            faults.append(f"code cell {i} prints terminal colours")
    cells = code_cells(notebook)
    loose = [c for c in cells if UNCHECKED & set(c["metadata"].get("tags", []))]
    if len(loose) * 4 > len(cells):
        faults.append(f"{len(loose)} of {len(cells)} code cells are not compared")
    return faults


def page_faults(notebook: Notebook, stored_bytes: int) -> list[str]:
    """Code too wide or too long for the page, a file too large."""
    faults = []
    for i, cell in enumerate(code_cells(notebook), 1):
        lines = "".join(cell["source"]).splitlines()
        wide = max(len(line) for line in lines)
        if wide > MAX_COLUMNS:
            faults.append(f"code cell {i} is {wide} columns wide, over {MAX_COLUMNS}")
        if len(lines) > MAX_LINES:
            faults.append(f"code cell {i} has {len(lines)} lines, over {MAX_LINES}")
    if stored_bytes >= MAX_BYTES:
        faults.append(f"the file has {stored_bytes} bytes, allowed are {MAX_BYTES}")
    return faults


def length_faults(notebook: Notebook) -> list[str]:
    """A chapter too short or too long for one sitting."""
    counts = {
        "code cells": (len(code_cells(notebook)), CODE_CELLS),
        "words": (words(notebook), WORDS),
        "plots": (plots(notebook), PLOTS),
    }
    return [
        f"{count} {what}, not {allowed.start} to {allowed.stop - 1}"
        for what, (count, allowed) in counts.items()
        if count not in allowed
    ]


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    """The code cells that hold any code."""
    return [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and "".join(cell["source"]).strip()
    ]


def words(notebook: Notebook) -> int:
    """Words of prose: Markdown without its fenced code."""
    prose = "\n".join(
        "".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"
    )
    return len(re.sub(r"```.*?```", "", prose, flags=re.DOTALL).split())


def plots(notebook: Notebook) -> int:
    """Stored pictures."""
    return sum("image/png" in o.get("data", {}) for _, o in _outputs(notebook))


def _outputs(notebook: Notebook) -> list[tuple[int, dict[str, Any]]]:
    return [
        (i, output)
        for i, cell in enumerate(code_cells(notebook), 1)
        for output in cell["outputs"]
    ]


def _text(output: dict[str, Any]) -> str:
    """Every readable part of one output; pictures are left out."""
    parts = [output.get("text", ""), output.get("traceback", "")]
    parts += [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return "\n".join("".join(part) for part in parts)
