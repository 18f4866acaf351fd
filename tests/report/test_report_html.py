"""report.html: one safe file that stands alone, whatever parts a run has."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from r1lite.errors import R1Error
from r1lite.report import Evaluation, Machine, Reply, Report, Sample, Stage
from r1lite.report.files import read_metrics
from r1lite.report.html import build, render
from r1lite.report.plots import readme_figure
from r1lite.report.reply import Segment, segments

VOID = {"meta", "br", "img", "link", "input", "hr"}
# What only this part brings to the page.
WORDS = {
    "model": "904 k active",
    "tokenizer": "2,048 tokens",
    "mixture": "general-texts",
    "demonstrations": "How the SFT mix was made",
    "stages": "4 min 01 s",
    "held_out": "Held-out bytes",
    "evaluations": "The result, beside every control",
    "controls": "Expert iteration",
    "goals": "What the recipe promises",
    "tried": "What was tried",
    "samples": "of the house and",
    "seeds": "Over 3 seeds",
    "notes": "Synthetic numbers made by a test.",
}


class Page(HTMLParser):
    """Checks that tags are balanced; collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.shown).split())


def check_stands_alone(text: str) -> Page:
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "img", "base"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name}"
            if name in ("href", "xlink:href", "src"):
                assert (value or "").startswith(("#", "data:image/png;base64,"))
            if name == "style":
                assert not re.search(r"url\((?!#)", value or "")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a.get("href") for tag, a in page.tags if tag == "a"}
    assert targets <= {f"#{i}" for i in ids}
    assert not re.search(r"\b(nan|None|inf|undefined)\b", page.text)
    return page


@pytest.fixture(scope="module")
def page(built: str) -> Page:
    return check_stands_alone(built)


def test_full_page_shows_every_part(page: Page) -> None:
    for part in (
        "28.0 → 94.5 %",
        "best control 95.5 %",
        "Elicitation: RL's default answer scores 94.5 %",
        "Control 1 SFT made to start with <think>",
        "Control 5 Expert iteration",
        "69.9 % answer at once",
        "Each family by itself",
        "Over 3 seeds",
        "93.5 %",
        "The same questions before and after RL",
        "<answer> 5 </answer>",
        "What was tried, the failures too",
        "general-texts (pkg, MIT)",
        "4 min 01 s",
        "R1-lite at 0123456789ab",
        "All 108 evaluations",
        'name = "nano"',
    ):
        assert part in page.text, part


def test_full_page_has_every_figure_with_words_for_it(page: Page) -> None:
    figures = [a for tag, a in page.tags if tag == "svg"]
    # 4 of RL and results, 2 of families, 2 losses, 3 optimisations, 2 loads, 2 data
    assert len(figures) == 15
    assert all(a.get("role") == "img" and a.get("aria-label") for a in figures)
    assert sum(tag == "figcaption" for tag, _ in page.tags) == len(figures)
    labels = " ".join(str(a["aria-label"]) for a in figures)
    assert "GRPO 94.5 %" in labels and "Load of 8 experts in 3 MoE layers" in labels


def test_tables_have_headers_with_scope(page: Page) -> None:
    headers = [a for tag, a in page.tags if tag == "th"]
    assert len(headers) > 100
    assert all(a.get("scope") in ("row", "col") for a in headers)


def test_think_is_folded(page: Page) -> None:
    assert "<think> 19 words" in page.text
    assert "<think> 8 words, cut off" in page.text
    assert not any("open" in a for tag, a in page.tags if tag == "details")


INJECTION = "\"'></svg></p><script>alert(1)</script><img src=x onerror=alert(2)>$x^{"


def test_no_text_of_a_run_becomes_markup(run_dir: Path, full_report: Report) -> None:
    data = json.loads(full_report.model_dump_json())

    def poison(value: object) -> object:
        if isinstance(value, dict):
            return {k: poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return f"{value}{INJECTION}" if isinstance(value, str) else value

    for key in ("samples", "tried", "notes", "mixture", "held_out", "machine"):
        data[key] = poison(data[key])
    for e in data["evaluations"]:
        e["family"] += INJECTION
    for control in data["controls"]:
        control["description"] += INJECTION
    data["recipe"] += INJECTION
    metrics = read_metrics(run_dir)
    metrics["sft" + INJECTION] = metrics.pop("sft")
    text = render(Report.model_validate(data), metrics, recipe=INJECTION)
    page = check_stands_alone(text)
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize("part", WORDS)
def test_page_without_a_part(full_report: Report, page: Page, part: str) -> None:
    empty = Report.model_fields[part].get_default()
    # Controls refer to evaluations, so they go together.
    changes = {part: empty} | ({"controls": []} if part == "evaluations" else {})
    # One family is enough here, and its figures are soon drawn.
    chain = [e for e in full_report.evaluations if e.family == "chain"]
    data = full_report.model_dump() | {"evaluations": chain} | changes
    without = check_stands_alone(render(Report.model_validate(data), {}))
    assert WORDS[part] in page.text
    assert WORDS[part] not in without.text


def test_smoke_run_without_controls(tmp_path: Path, machine: Machine) -> None:
    Report(
        recipe="smoke",
        seed=0,
        machine=machine,
        stages=[Stage(name="pretrain", seconds=1.0)],
        evaluations=[
            Evaluation(policy=p, family="chain", level=2, n=16, accuracy=a)
            for p, a in (("sft", 0.0), ("grpo", 0.0))
        ],
    ).save(tmp_path)
    page = check_stands_alone(build(tmp_path).read_text("utf-8"))
    assert "No gain" in page.text and "no control run" in page.text
    for absent in ("Control 1", "Conversations", "Expert load", "Tokenizer", "Data"):
        assert absent not in page.text


def test_nothing_but_a_machine(tmp_path: Path, machine: Machine) -> None:
    Report(recipe="smoke", seed=0, machine=machine).save(tmp_path)
    page = check_stands_alone(build(tmp_path).read_text("utf-8"))
    assert not any(tag == "svg" for tag, _ in page.tags)


def test_missing_report_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(R1Error, match="no such file"):
        build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wild_metrics_are_left_out(tmp_path: Path, machine: Machine) -> None:
    nan, inf = float("nan"), float("inf")
    lines: list[dict[str, Any]] = [
        {"stage": "pretrain", "step": i, "loss": [nan, inf, None, "2", True][i % 5]}
        for i in range(20)
    ]
    loads: list[Any] = [[[0.5], [0.2, 0.3]], [], "x", [[nan, 1.0]], [[0.0, 0.0]], None]
    lines += [
        {"stage": "sft", "step": i, "load": load, "max_violation": nan}
        for i, load in enumerate(loads)
    ]
    lines += [{"stage": "grpo", "step": 0, "reward": 1.0, "length": 5}]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    Report(recipe="r", seed=0, machine=machine).save(tmp_path)
    page = check_stands_alone(build(tmp_path).read_text("utf-8"))
    for absent in ("Training loss of", "Expert load", "Mean reward"):
        assert absent not in page.text


def test_a_long_run_stays_a_small_page(machine: Machine) -> None:
    records = [
        {
            "stage": "pretrain",
            "step": i,
            "tokens": i,
            "loss": 1 + (i * 7919 % 1000) / 1000,
            "load": [[0.5, 0.5]],
        }
        for i in range(20_000)
    ]
    report = Report(recipe="r", seed=0, machine=machine)
    page = render(report, {"pretrain": records})
    assert "Training loss of pretrain" in page and "Load of 2 experts" in page
    assert len(page) < 100_000, "20,000 points would take ten times as much"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "<think>a\nb</think><answer>5</answer><｜end▁of▁sentence｜>",
            [Segment("think", "a\nb"), Segment("answer", "5")],
        ),
        ("<think>a", [Segment("think", "a", closed=False)]),
        ("a</think>5", [Segment("think", "a"), Segment("text", "5")]),
        (
            "a</think><think>b</think>",
            [Segment("think", "a"), Segment("think", "b")],
        ),
        ("<answer>5", [Segment("answer", "5", closed=False)]),
        ("5</answer>", [Segment("text", "5</answer>")]),
        ("x\x1b[31m\u202ey", [Segment("text", "x\ufffd[31m\ufffdy")]),
        ("été\u00a0!", [Segment("text", "été\u00a0!")]),
        (" <｜▁pad▁｜> ", []),
    ],
)
def test_segments(text: str, expected: list[Segment]) -> None:
    assert segments(text) == expected


def test_a_sample_with_half_a_character_can_be_written(machine: Machine) -> None:
    replies = {"grpo": Reply(text="\ufffd\x00", correct=False)}
    sample = Sample(question="q", reference="5", family="chain", replies=replies)
    report = Report(recipe="r", seed=0, machine=machine, samples=[sample])
    assert "\x00" not in render(report, {})


def test_readme_figure(run_dir: Path, full_report: Report, machine: Machine) -> None:
    path = run_dir / "figure.png"
    assert readme_figure(full_report, read_metrics(run_dir), path) == path
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(R1Error, match="no evaluations"):
        readme_figure(Report(recipe="r", seed=0, machine=machine), {}, path)
