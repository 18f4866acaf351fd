"""Is the reader's answer to an exercise right, and if not, what went wrong?

It runs the reader's own file, never the solution. TODO is an untouched stub,
FAIL comes with the likely mistake, PASS means that the check found none.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FrameType, ModuleType

import torch

from r1lite.book.expect import Mistake, given
from r1lite.errors import R1Error
from r1lite.workbook.exercise import Exercise, Group, number_of, regions

SECONDS = 60  # a check that takes longer has met an endless loop


@dataclass(frozen=True)
class Outcome:
    """What a check found: state is TODO, FAIL or PASS.

    `answers` is the reader's module that passed.
    """

    exercise: Exercise
    state: str
    message: str = ""
    answers: ModuleType | None = None


def select_exercises(
    groups: list[Group], numbers: str | None
) -> list[tuple[Group, list[Exercise]]]:
    """The exercises that "1.2", "1" or None stand for, by group.

    Raises:
        R1Error: there is no such exercise.
    """
    found = [
        (group, [e for e in group.exercises if _named(e.number, numbers)])
        for group in groups
    ]
    found = [(group, chosen) for group, chosen in found if chosen]
    if not found:
        known = ", ".join(e.number for g in groups for e in g.exercises)
        raise R1Error(f"exercise: there is no {numbers!r}; choose from {known}")
    return found


def _named(number: str, wanted: str | None) -> bool:
    return wanted in (None, number, number.partition(".")[0])


def examine(
    folder: Path, group: Group, chosen: list[Exercise], file: Path | None = None
) -> list[Outcome]:
    """Check exercises of one group in the reader's file (default: the stub's)."""
    path = file or folder / f"{group.name}.py"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise R1Error(
            f"{path}: cannot be read ({error}); restore it from git"
        ) from None
    preamble, *rest = regions(text)
    own = {number_of(r): r for r in rest}
    untouched = {e.number for e in group.exercises if own.get(e.number) == e.stub}
    if len(untouched) == len(group.exercises) and preamble == group.preamble:
        return [Outcome(e, "TODO") for e in chosen]
    mine, broken = load_answers(path)
    checks = _load(folder / "checks" / f"{group.name}.py")
    outcomes = []
    for e in chosen:
        if e.number not in own:
            missing = f"the line '# %% {e.number} | …' is gone; put it back"
            outcomes.append(Outcome(e, "FAIL", missing))
        elif e.number in untouched and mine is not None:
            outcomes.append(Outcome(e, "TODO"))
        elif mine is None:
            outcomes.append(Outcome(e, "FAIL", broken))
        else:
            outcomes.append(_judge(e, mine, checks, path))
    return outcomes


def load_answers(path: Path) -> tuple[ModuleType | None, str]:
    """(the reader's file as a module, ""), or (None, why it does not load)."""
    try:
        with _time_limit():
            return _load(path), ""
    except TimeoutError:
        return None, f"the file is still loading after {SECONDS} s: an endless loop?"
    except SyntaxError as error:
        return None, f"line {error.lineno} is not Python: {error.msg}"
    except (Exception, SystemExit) as error:
        return None, _raised(error, path)


def _load(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"exercises_{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    # Read afresh: a cached byte code of the same second would hide an edit.
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    exec(code, module.__dict__)
    return module


def _judge(e: Exercise, mine: ModuleType, checks: ModuleType, path: Path) -> Outcome:
    examiner = getattr(checks, f"check_{e.number.replace('.', '_')}")
    try:
        with torch.random.fork_rng(devices=[]), _time_limit():
            torch.manual_seed(0)
            examiner(mine)
    except NotImplementedError as error:
        places = {str(path), *(f.__code__.co_filename for f in (examiner, given))}
        if _is_todo(error, places):
            return Outcome(e, "TODO")
        return Outcome(e, "FAIL", _raised(error, path))
    except Mistake as mistake:
        return Outcome(e, "FAIL", str(mistake))
    except TimeoutError:
        return Outcome(e, "FAIL", f"still running after {SECONDS} s: an endless loop?")
    except (Exception, SystemExit) as error:
        return Outcome(e, "FAIL", _raised(error, path))
    return Outcome(e, "PASS", answers=mine)


def _is_todo(error: NotImplementedError, files: set[str]) -> bool:
    """Was it raised by a `raise` in one of `files`?

    Torch raises the same error where a function does not take a dtype.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    by_raise = re.search(r"\braise\b", last.line or "") is not None
    return by_raise and last.filename in files


def _raised(error: BaseException, path: Path) -> str:
    """What the reader's code raised, and where in the reader's file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(path)]
    place = f" (line {lines[-1]})" if lines else ""
    first = (str(error).splitlines() or [""])[0][:200]
    return f"your code raised {type(error).__name__}: {first}{place}"


@contextmanager
def _time_limit() -> Iterator[None]:
    """TimeoutError after SECONDS, where the system can interrupt."""
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
