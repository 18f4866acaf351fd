"""The page of a chapter's exercises, from their source file."""

from __future__ import annotations

import re
from pathlib import Path

from r1lite.book import Chapter
from r1lite.workbook.exercise import Exercise, Group

KINDS = {
    "predict": "predict a number",
    "fill": "write a function",
    "bug": "find the bug",
    "measure": "measure and explain",
}
# The start of a line such as "LEFT: the share …", "x: (T, E)", '  "A" because …'.
_NAMED = re.compile(r'\s*[\w.=]+: |\s+"\w+":?\s|Returns? \(')
ASIDE = '<details class="{0}">\n<summary>{1}</summary>\n\n{2}\n\n</details>\n'


def exercise_page(group: Group, chapter: Chapter, linked: bool) -> str:
    """One page for the exercises of a chapter: stub, hints and solution."""
    place = f"chapter {chapter.number:02d}"
    if linked:
        place = f"[{place}](../chapters/{Path(chapter.notebook).stem})"
    head = (
        f"# {chapter.number:02d} · Exercises: {chapter.title.partition(':')[0]}\n\n"
        f"They belong to {place}. Write your answers into "
        f"`exercises/{group.name}.py`. `r1lite check {chapter.number}` shows where "
        f"you stand; `r1lite check {group.exercises[0].number}` checks one of them."
        "\n\nThe file starts with\n\n" + python(group.preamble)
    )
    return "\n".join([head, *map(_exercise, group.exercises)])


def _exercise(exercise: Exercise) -> str:
    prose, stub, solution = split(exercise)
    facts = [
        KINDS[exercise.kind],
        f"level {exercise.level} of 3",
        f"{exercise.minutes} minutes",
    ]
    if exercise.swaps:
        facts.append(f"trains the model in place of `{exercise.swaps}`")
    parts = [
        f"\n## {exercise.number} · {exercise.title}\n",
        f"*{' · '.join(facts)}*\n\n{prose}\n",
        python(stub),
    ]
    for i, hint in enumerate(exercise.hints, 1):
        parts.append(ASIDE.format("hint", f"Hint {i}", typeset(hint)))
    parts.append(ASIDE.format("solution", "Solution", python(solution)))
    return "\n".join(parts)


def split(exercise: Exercise) -> tuple[str, str, str]:
    """The prose of an exercise, and its stub and solution without it.

    The prose is the comment that opens both, after the line with the title.
    """
    stub = exercise.stub.split("\n")[1:]
    solution = exercise.solution.split("\n")[1:]
    n = 0
    for a, b in zip(stub, solution, strict=False):
        if a != b or not a.startswith("#"):
            break
        n += 1
    prose = "\n".join(line[1:].removeprefix(" ") for line in stub[:n])
    return typeset(prose), "\n".join(stub[n:]).strip(), "\n".join(solution[n:]).strip()


def typeset(prose: str) -> str:
    """Plain text as Markdown: lines wrap anew, breaks made on purpose stay.

    A break was made on purpose before a line that names a thing, before a
    deeper line under a colon, and after a sentence that left room for a word.
    Deeper lines keep their indent.
    """
    widest = max(map(len, prose.split("\n")))
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", prose):
        made: list[str] = []
        before = ""
        for line in paragraph.split("\n"):
            deeper = _indent(line) > _indent(before)
            room = len(before) + 1 + len(line.split()[0]) <= widest
            on_purpose = (
                _NAMED.match(line)
                or (deeper and before.endswith(":"))
                or (room and (deeper or before[-1:] in tuple(".;:,)")))
            )
            if before and not on_purpose:
                made[-1] += " " + line.strip()
            else:
                made.append("\N{EM SPACE}" * (_indent(line) // 2) + line.strip())
            before = line
        paragraphs.append("\\\n".join(made))
    # Outside `code` a "<" would open a tag.
    parts = re.split("(`[^`]*`)", "\n\n".join(paragraphs))
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;") for p in parts)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def python(code: str) -> str:
    """A block of Python in a page."""
    return f"```python\n{code}\n```\n"
