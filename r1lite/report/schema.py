"""report.json: what a run measured, validated when written and when read.

The parts are in `parts.py` and `results.py`. Pooled numbers and verdicts are
worked out here from the evaluations, so that a table and a sentence can never
disagree.
"""
# ruff: noqa: RUF012 (pydantic copies a mutable default for each object)

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from r1lite.errors import R1Error
from r1lite.report.files import write_atomically
from r1lite.report.parts import (
    Demonstrations,
    Domain,
    HeldOut,
    Machine,
    Model,
    Part,
    Stage,
    Tokenizer,
)
from r1lite.report.results import (
    Attempt,
    Control,
    Evaluation,
    Goal,
    Headline,
    Rung,
    Sample,
    SeedResult,
    Verdict,
    pool,
)
from r1lite.report.verdict import Result, judge

FILE_NAME = "report.json"
PAGE_NAME = "report.html"


class Report(Part):
    format_version: Literal[1] = 1
    recipe: str
    seed: int
    created: str = ""
    machine: Machine
    model: Model | None = None
    tokenizer: Tokenizer | None = None
    mixture: list[Domain] = []
    demonstrations: Demonstrations | None = None
    stages: list[Stage] = []
    held_out: list[HeldOut] = []
    headline: Headline = Headline()
    evaluations: list[Evaluation] = []
    controls: list[Control] = []
    r1: list[Rung] = []
    goals: list[Goal] = []
    tried: list[Attempt] = []
    samples: list[Sample] = []
    seeds: list[SeedResult] = []
    notes: list[str] = []
    mine: dict[str, str] = {}
    verdicts: list[Verdict] = []

    @model_validator(mode="after")
    def _consistent(self) -> Report:
        _no_repeats(self.evaluations)
        _same_problems(self)
        # Whatever the file says, the verdict is the one the numbers give.
        object.__setattr__(self, "verdicts", _verdicts(self))
        return self

    @property
    def seconds(self) -> float:
        """Time of all stages together."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def families(self) -> list[str]:
        """Families measured on the headline's split, in the order written."""
        split = self.headline.split
        return list(
            dict.fromkeys(e.family for e in self.evaluations if e.split == split)
        )

    def select(
        self,
        policy: str,
        decode: str = "greedy",
        forced_think: bool = False,
        split: str | None = None,
        family: str | None = None,
    ) -> list[Evaluation]:
        """Evaluations made this way (split None: the headline's)."""
        way, split = (policy, decode, forced_think), split or self.headline.split
        return [
            e
            for e in self.evaluations
            if e.way == way and e.split == split and family in (None, e.family)
        ]

    def pooled(
        self,
        policy: str,
        decode: str = "greedy",
        forced_think: bool = False,
        split: str | None = None,
        family: str | None = None,
    ) -> Evaluation | None:
        """The same over all problems of the family (None: of all families)."""
        rows = self.select(policy, decode, forced_think, split, family)
        return pool(rows, family or "all") if rows else None

    def before(self, family: str | None = None) -> Evaluation | None:
        line = self.headline
        return self.pooled(line.before, line.decode, family=family)

    def after(self, family: str | None = None) -> Evaluation | None:
        line = self.headline
        return self.pooled(line.after, line.decode, family=family)

    def control_results(
        self, family: str | None = None
    ) -> list[tuple[Control, Evaluation]]:
        """Each control row with its pooled numbers."""
        pairs = [(c, self.pooled(*c.way, family=family)) for c in self.controls]
        return [(c, e) for c, e in pairs if e is not None]

    def save(self, run_dir: Path | str) -> Path:
        """Write run_dir/report.json whole or not at all; return its path.

        Checks everything again first. R1Error if a field is bad or the disk
        refuses; an existing file then stays as it was.
        """
        path = Path(run_dir) / FILE_NAME
        report = _validated(self.model_dump(), path)
        write_atomically(path, report.model_dump_json(indent=1) + "\n")
        return path

    @classmethod
    def load(cls, run_dir: Path | str) -> Report:
        """Read run_dir/report.json; R1Error names the first bad field."""
        path = Path(run_dir) / FILE_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise R1Error(
                f"{path}: no such file; the run has not finished, or this is not a "
                "run directory"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise R1Error(f"{path}: cannot be read ({error}); run again") from None
        return _validated(text, path)


def _validated(data: dict[str, Any] | str, path: Path) -> Report:
    try:
        if isinstance(data, str):
            return Report.model_validate_json(data)
        return Report.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "report"
        problem = " ".join(first["msg"].split())
        raise R1Error(
            f"{path}: {field}: {problem}; correct the field or run the recipe again"
        ) from None


def _no_repeats(evaluations: Sequence[Evaluation]) -> None:
    seen = set()
    for e in evaluations:
        key = (*e.way, e.split, e.family, e.level)
        if key in seen:
            raise ValueError(f"evaluations: {key} is there twice")
        if e.family == "all":
            raise ValueError("evaluations: family 'all' is pooled by the report")
        seen.add(key)


def _same_problems(report: Report) -> None:
    """Rows measured on other problems than RL cannot stand beside it."""

    def problems(rows: Sequence[Evaluation]) -> set[tuple[str, int | None, int]]:
        return {(e.family, e.level, e.n) for e in rows}

    line = report.headline
    wanted = problems(report.select(line.after, line.decode))
    rows = [("controls", f"control {c.id} {c.way}", c.way) for c in report.controls]
    rows += [("r1", p.policy, (p.policy, line.decode, False)) for p in report.r1]
    for part, name, way in rows:
        found = problems(report.select(*way))
        if not found:
            raise ValueError(f"{part}: no evaluation on {line.split} for {name}")
        if wanted and found != wanted:
            raise ValueError(
                f"{part}: {name} was measured on other problems than {line.after}: "
                f"{sorted(found ^ wanted, key=str)[0]}"
            )


def _verdicts(report: Report) -> list[Verdict]:
    """One verdict over all problems and, with several families, one for each."""
    families = report.families if len(report.families) > 1 else []
    found = []
    for family in (None, *families):
        after = report.after(family)
        if after is None:
            continue
        before = report.before(family)
        controls = [
            _result(c.description, e, c.id) for c, e in report.control_results(family)
        ]
        outcome, text = judge(
            _result(report.headline.after, after),
            controls,
            _result(report.headline.before, before) if before else None,
        )
        found.append(Verdict(family=family or "all", outcome=outcome, text=text))
    return found


def _result(name: str, e: Evaluation, control: int | None = None) -> Result:
    return Result(name, e.accuracy, e.ci_low, e.ci_high, control)
