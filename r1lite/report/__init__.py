"""What a run measured, and how it is shown: report.json, report.html, terminal.

`r1lite.report.html.build(run_dir)` writes report.html,
`r1lite.report.terminal.summary(report)` prints the table at the end of a run.
"""

from r1lite.report.parts import (
    Demonstrations,
    Domain,
    HeldOut,
    Machine,
    Model,
    Source,
    Stage,
    Tokenizer,
)
from r1lite.report.results import (
    Attempt,
    Control,
    Evaluation,
    Goal,
    Headline,
    Reply,
    Rung,
    Sample,
    SeedResult,
    Verdict,
)
from r1lite.report.schema import Report
from r1lite.report.verdict import judge, wilson

__all__ = [
    "Attempt",
    "Control",
    "Demonstrations",
    "Domain",
    "Evaluation",
    "Goal",
    "Headline",
    "HeldOut",
    "Machine",
    "Model",
    "Reply",
    "Report",
    "Rung",
    "Sample",
    "SeedResult",
    "Source",
    "Stage",
    "Tokenizer",
    "Verdict",
    "judge",
    "wilson",
]
