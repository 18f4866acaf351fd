"""What `r1lite chat` and `r1lite eval` do with a saved model."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from r1lite import hub
from r1lite import recipe as recipes
from r1lite.data import chat
from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.evaluation import EvalConfig, answer, by_level, problem_set
from r1lite.generation import Sampling, sample
from r1lite.model import R1Model
from r1lite.pipeline.context import RECIPE_FILE
from r1lite.report.verdict import wilson


def open_model(directory: Path) -> tuple[R1Model, R1Tokenizer]:
    """Model and tokenizer of a saved directory.

    Raises:
        R1Error: the directory is missing or holds no model.
    """
    if not directory.is_dir():
        raise R1Error(
            f"{directory}: no such directory; train one with `r1lite run nano`"
        )
    return hub.from_pretrained(directory), R1Tokenizer.load(directory)


def talk(
    console: Console,
    directory: Path,
    temperature: float,
    max_new_tokens: int,
    think: bool,
    seed: int,
) -> None:
    """Read questions until end of file or an empty line; each stands alone."""
    model, tokenizer = open_model(directory)
    console.print(f"Talking to {escape(str(directory))}. {_hint(directory)}")
    turn = 0
    while True:
        try:
            question = console.input("[bold]you>[/bold] ").strip()
        except EOFError:
            return
        if not question:
            return
        how = Sampling(
            max_new_tokens,
            temperature,
            stop_ids=(tokenizer.eos_id,),
            seed=seed + turn,
        )
        turn += 1
        try:
            say(console, model, tokenizer, question, how, think)
        except R1Error as e:  # a too long question must not end the conversation
            console.print(f"[red]{escape(str(e))}[/red]")


def _hint(directory: Path) -> str:
    """What to ask: the tasks this model was trained on."""
    from r1lite.tasks import stream

    path = directory.parent / RECIPE_FILE
    if not path.is_file():
        return "An empty line ends the conversation."
    try:
        shares = recipes.read(path).tasks.shares
    except R1Error:  # of another version; one can talk all the same
        return "An empty line ends the conversation."
    problem_at = stream(shares, seed=0).problem_at
    asked = sorted({problem_at(i).question for i in range(3)})
    return "Ask for example: " + escape(" | ".join(asked)) + " (empty line ends)"


def say(
    console: Console,
    model: R1Model,
    tokenizer: R1Tokenizer,
    question: str,
    how: Sampling,
    think: bool,
) -> None:
    """Answer one question, the reasoning dimmed above the answer."""
    ids = chat.prompt(tokenizer, question, think=think)
    tokens = sample(model, [ids], how).tokens[0]
    parsed = chat.parse(tokenizer, tokens, forced_think=think)
    if parsed.reasoning:
        console.print(f"[dim]{escape(parsed.reasoning)}[/dim]")
    text = parsed.answer if parsed.answer is not None else tokenizer.decode(tokens)
    console.print(f"[bold green]r1>[/bold green] {escape(text)}")


def show_evaluation(
    console: Console,
    directory: Path,
    levels: tuple[str, ...],
    split: str,
    count: int,
    temperature: float,
    think: bool,
    max_new_tokens: int,
    seed: int,
) -> None:
    """Print accuracy, format and length by level with 95 % intervals."""
    if split not in ("validation", "test"):
        raise R1Error(f"--split: {split!r} is unknown; choose validation or test")
    if count < 1:
        raise R1Error(f"--problems: {count} is too few; give at least 1")
    model, tokenizer = open_model(directory)
    if not levels:
        path = directory.parent / RECIPE_FILE
        if not path.is_file():
            raise R1Error("--level: give at least one, e.g. --level chain/4")
        levels = tuple(recipes.read(path).tasks.shares)
    levels = tuple(dict.fromkeys(levels))  # a problem counts once
    config = EvalConfig(levels=levels, max_new_tokens=max_new_tokens)
    how = Sampling(max_new_tokens, temperature, stop_ids=(tokenizer.eos_id,), seed=seed)
    asked = problem_set(config, split, count)
    results = by_level(answer(model, tokenizer, asked, how, think=think))
    table = Table("level", "problems", "right", "95 % interval", "format", "tokens")
    for r in results:
        low, high = wilson(r.accuracy, r.n)
        table.add_row(
            f"{r.family}/{r.level}",
            str(r.n),
            f"{r.accuracy:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{r.format:.1%}",
            f"{r.mean_length:.1f}",
        )
    console.print(table)
