"""The command line: `r1lite run|chat|eval|serve|quantize|bench|check|plan`."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from r1lite.errors import R1Error

console = Console()
cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="R1-lite: build, train and talk to a DeepSeek-R1-style reasoning model.",
)

Out = Annotated[Path | None, typer.Option(help="Run directory; default: runs/RECIPE.")]
Directory = Annotated[Path, typer.Argument(help="A saved model, e.g. runs/nano/final.")]
Seed = Annotated[int | None, typer.Option(help="Random seed.")]


@cli.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or a .toml file.")],
    out: Out = None,
    seed: Seed = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field, e.g. --set grpo.steps=20."),
    ] = None,
    mine: Annotated[
        bool, typer.Option("--mine", help="Train with your own passing exercises.")
    ] = False,
    quiet: Annotated[bool, typer.Option(help="No progress bars.")] = False,
) -> None:
    """Train a recipe from random weights to a reasoning model, or resume it."""
    from r1lite import recipe as recipes
    from r1lite.pipeline import run_recipe
    from r1lite.workbook import swap

    changes: dict[str, Any] = dict(recipes.parse_assignment(s) for s in set_ or [])
    if seed is not None:
        changes["seed"] = seed
    parts = swap.announced_parts(console) if mine else []
    changes |= {"mine": swap.described(parts)} if mine else {}
    loaded = recipes.load(recipe, changes)
    swap.require_named(loaded.mine, mine)
    target = out or Path("runs") / (loaded.name + ("-mine" if mine else ""))
    with swap.using(parts):
        run_recipe(loaded, target, console, not quiet)


@cli.command()
def chat(
    directory: Directory = Path("runs/nano/final"),
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 128,
    think: Annotated[bool, typer.Option(help="Force reasoning with <think>.")] = False,
    seed: Seed = 0,
) -> None:
    """Talk to a saved model in the terminal."""
    from r1lite.pipeline.talk import talk

    talk(console, directory, temperature, max_new_tokens, think, seed or 0)


@cli.command(name="eval")
def evaluate(
    directory: Directory,
    levels: Annotated[
        list[str] | None,
        typer.Option("--level", help="family/level, e.g. chain/4; repeatable."),
    ] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "validation",
    problems: Annotated[int, typer.Option(help="Unique problems a level.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    think: Annotated[bool, typer.Option(help="Force reasoning with <think>.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 96,
    seed: Seed = 0,
) -> None:
    """Measure a saved model on verifiable problems."""
    from r1lite.pipeline.talk import show_evaluation

    show_evaluation(
        console,
        directory,
        tuple(levels or ()),
        split,
        problems,
        temperature,
        think,
        max_new_tokens,
        seed or 0,
    )


@cli.command()
def serve(
    directory: Directory = Path("runs/nano/final"),
    host: Annotated[str, typer.Option(help="0.0.0.0: every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="R1LITE_API_KEY", help="Ask clients for this key."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name in the API.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    max_running: Annotated[int, typer.Option(help="Answers made at once.")] = 32,
    max_waiting: Annotated[int, typer.Option(help="Queue; beyond it 429.")] = 256,
    max_batch_tokens: Annotated[int, typer.Option(help="Tokens of one step.")] = 256,
    cache_mb: Annotated[int, typer.Option(help="Memory of the cache, MiB.")] = 256,
    speculate: Annotated[
        bool, typer.Option("--speculate", help="Draft with the MTP module.")
    ] = False,
    max_body_kb: Annotated[
        int, typer.Option(help="Largest request, KiB; beyond it 413.", min=1)
    ] = 1024,
    request_timeout: Annotated[
        float, typer.Option(help="Seconds of an answer, waiting included.", min=0.1)
    ] = 600,
    drain_timeout: Annotated[
        float, typer.Option(help="Seconds to finish in after SIGTERM.", min=0)
    ] = 30,
) -> None:
    """Serve a saved model: OpenAI's API and a chat page."""
    from r1lite.serving.api.app import Limits
    from r1lite.serving.api.process import Options
    from r1lite.serving.api.process import serve as serve_directory
    from r1lite.serving.types import EngineConfig

    engine = EngineConfig(
        memory_bytes=cache_mb * 2**20,
        max_batch_tokens=max_batch_tokens,
        max_running=max_running,
        max_waiting=max_waiting,
        speculate=speculate,
    )
    limits = Limits(max_body_kb * 1024, request_seconds=request_timeout)
    options = Options(host, port, name, api_key, device, engine, limits, drain_timeout)
    serve_directory(directory, options, console)


@cli.command()
def quantize(
    directory: Directory,
    out: Annotated[Path, typer.Option(help="The new directory.")],
    scheme: Annotated[
        str, typer.Option(help="int8, int8-dynamic, int4-g32, fp8-block, ...")
    ] = "int8",
    method: Annotated[
        str, typer.Option(help="Rounding: rtn, gptq, awq or hqq.")
    ] = "rtn",
    text: Annotated[
        list[Path] | None,
        typer.Option(help="A file gptq and awq calibrate on; repeatable."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A weight to leave in float, by its name; repeatable."),
    ] = None,
) -> None:
    """Store a saved model in fewer bits, routed experts included."""
    from r1lite.quantization.apply import KEEP
    from r1lite.quantization.directory import quantise_directory

    kept = (*KEEP, *(keep or ()))
    report = quantise_directory(directory, out, scheme, method, text or (), kept)
    console.print(str(report), markup=False, highlight=False, soft_wrap=True)


@cli.command()
def plan(
    model: Annotated[str, typer.Argument(help="A preset, or a recipe's name or file.")],
    gpus: Annotated[int, typer.Option(help="How many.")] = 8,
    gpu: Annotated[str, typer.Option(help="h800, h100, a100 or l4.")] = "h100",
    pp: Annotated[int, typer.Option(help="Pipeline stages.")] = 1,
    ep: Annotated[int, typer.Option(help="Ranks that share the experts.")] = 1,
    rows: Annotated[int, typer.Option(help="Sequences in a global batch.")] = 256,
    seq: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 4096,
    micro_rows: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    tokens: Annotated[
        float | None, typer.Option(help="Of the whole run, e.g. 14.8e12.")
    ] = None,
    efficiency: Annotated[float, typer.Option(help="Share of the peak.")] = 0.4,
    schedule: Annotated[
        str | None, typer.Option(help="1f1b, zb1p, dualpipe or dualpipev.")
    ] = None,
    node_limit: Annotated[
        int | None, typer.Option(help="Nodes a token may go to, once to each.")
    ] = None,
    like_v3: Annotated[
        bool, typer.Option("--like-v3", help="FP8, DualPipe, 4 nodes a token.")
    ] = False,
) -> None:
    """Say what a training run will need: memory, messages, time."""
    from dataclasses import replace

    from r1lite import recipe as recipes
    from r1lite.config import PRESETS, R1Config
    from r1lite.planner.hardware import hardware
    from r1lite.planner.layout import Layout
    from r1lite.planner.step import V3_ASSUMPTIONS, Assumptions
    from r1lite.planner.table import plan_table

    if model in PRESETS:
        config = R1Config.preset(model)
    else:
        config = recipes.load(model).model_config_for()
    assumed = V3_ASSUMPTIONS if like_v3 else Assumptions()
    chosen = {"schedule": schedule, "node_limit": node_limit}
    given = {name: value for name, value in chosen.items() if value is not None}
    assumed = replace(assumed, efficiency=efficiency, **given)  # type: ignore[arg-type]
    layout = Layout(gpus, pp, ep, rows, seq, micro_rows)
    console.print(plan_table(config, layout, hardware(gpu), assumed, tokens))


@cli.command()
def check(
    number: Annotated[
        str | None, typer.Argument(help="An exercise (1.2) or a chapter (1).")
    ] = None,
    hint: Annotated[bool, typer.Option("--hint", help="Show the next hint.")] = False,
    give_up: Annotated[
        bool, typer.Option("--give-up", help="Show a solution.")
    ] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Put the stub back in place.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Check again on every save.")
    ] = False,
) -> None:
    """Check your exercises: TODO, FAIL with the likely mistake, or PASS."""
    from r1lite.workbook import practice

    if hint:
        practice.show_hint(console, number)
    elif give_up:
        practice.show_solution(console, number)
    elif reset:
        practice.start_again(console, number)
    elif watch:
        practice.watch(console, number)
    elif not practice.show_state(console, number):
        raise typer.Exit(1)


bench = typer.Typer(no_args_is_help=True, help="Measure speed on this machine.")
cli.add_typer(bench, name="bench")


@bench.command("kernels")
def bench_kernels(
    interpret: Annotated[
        bool, typer.Option("--interpret", help="Without a GPU: small, only a proof.")
    ] = False,
    only: Annotated[str, typer.Option(help="Kernels with this in their name.")] = "",
    tokens: Annotated[
        int | None, typer.Option(help="Default: 4096; interpreted 6.", min=1)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table here.")] = None,
) -> None:
    """Triton kernels against eager PyTorch, torch.compile, SDPA and cuBLAS."""
    if interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is loaded
    from r1lite.kernels.bench import bench_table

    table = bench_table(interpret, only, tokens, say=print)
    if out:
        out.write_text(table)


def app() -> None:
    """Entry point: user errors become one line and exit code 2."""
    try:
        cli()
    except R1Error as e:
        print(f"r1lite: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        print(
            "r1lite: the disk is full; free some space and run the same command "
            "again, it resumes",
            file=sys.stderr,
        )
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as e:
        # Typer makes the exit code 130 of Ctrl-C.
        if isinstance(e, SystemExit) and e.code != 130:
            raise
        print("r1lite: stopped; the same command resumes", file=sys.stderr)
        sys.exit(130)
