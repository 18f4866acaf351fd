"""Runs functions of a notebook in several real processes.

torchrun starts n copies of a script, and each copy imports torch before it
does anything: seconds, every time. Here one server process imports it once and
forks itself for every rank. A rank finds what torchrun would give it, a
process group, and is gone when its function returns.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import marshal
import multiprocessing
import pickle
import tempfile
import traceback
import types
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# What the server imports before it forks; the last one is a second's work of
# use_deterministic_algorithms.
LOADED = [
    "scripts.ranks",
    "r1lite.parallel.checkpoint",
    "r1lite.parallel.team",
    "torch._inductor.config",
]


def on_ranks(
    n: int, work: Callable[..., Any], *given: Any, wait_s: float = 60
) -> list[Any]:
    """Call work(rank, *given) in n new processes that form one gloo group.

    Returns what each rank returned, in order of rank. `wait_s`: how long a
    rank waits for another.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    task, started = _packed((work, given)), {}
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(n):
            here, there = context.Pipe()
            args = there, task, rank, n, folder, wait_s
            process = context.Process(target=_live, args=args, daemon=True)
            process.start()
            there.close()
            started[here] = process
        try:
            return _answers(list(started))
        except BaseException:  # the others would wait for the rank that failed
            for process in started.values():
                process.terminate()
            raise
        finally:
            for process in started.values():
                process.join()


def _live(
    pipe: Any, task: bytes, rank: int, n: int, folder: str, wait_s: float
) -> None:
    """The life of one rank."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    store, wait = f"file://{Path(folder, 'store')}", timedelta(seconds=wait_s)
    dist.init_process_group("gloo", store, wait, rank=rank, world_size=n)
    answer, error, data = None, "", io.BytesIO()
    try:
        work, given = pickle.loads(task)
        answer = work(rank, *given)
    except Exception:
        error = traceback.format_exc()
    torch.save((answer, error), data)
    pipe.send_bytes(data.getvalue())
    # Another rank may still be making groups with this one; to leave now would
    # make it wait. If one has failed there is nobody to wait for.
    with contextlib.suppress(RuntimeError):
        dist.barrier()
    dist.destroy_process_group()


def _answers(pipes: list[Any]) -> list[Any]:
    """What the ranks returned, None for one that died without a word.

    The first error to arrive is raised: those after it come from ranks that
    waited for the one that failed.
    """
    found: dict[Any, Any] = {}
    while len(found) < len(pipes):
        for pipe in connection.wait([p for p in pipes if p not in found]):
            found[pipe] = _answer(pipes.index(pipe), pipe)
    return [found[p] for p in pipes]


def _answer(rank: int, pipe: Any) -> Any:
    """What this rank returned, or its error."""
    try:
        data = io.BytesIO(pipe.recv_bytes())
    except EOFError:
        return None
    # A pickle, but from a process that we have started ourselves.
    found, error = torch.load(data, weights_only=False)
    if error:
        raise RuntimeError(f"rank {rank}: {error}")
    return found


def _packed(thing: Any) -> bytes:
    data = io.BytesIO()
    _Pickler(data).dump(thing)
    return data.getvalue()


class _Pickler(pickle.Pickler):
    """Pickle refuses a notebook's functions, for nobody could import them.

    They travel as byte code, with whatever of the notebook they mention.
    """

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, types.ModuleType):
            return importlib.import_module, (thing.__name__,)
        is_function = isinstance(thing, types.FunctionType)
        if not is_function or thing.__module__ != "__main__":
            return NotImplemented
        code, space = thing.__code__, thing.__globals__
        parts = marshal.dumps(code), thing.__name__, thing.__defaults__
        mentioned = {k: space[k] for k in _names(code) if k in space}
        return _function, parts, mentioned, None, None, _fill


def _names(code: types.CodeType) -> set[str]:
    """The names that a function, or a function inside it, looks up."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _function(
    code: bytes, name: str, defaults: tuple[Any, ...] | None
) -> types.FunctionType:
    space = {"__builtins__": __builtins__, "__name__": "__main__"}
    return types.FunctionType(marshal.loads(code), space, name, defaults)


def _fill(made: types.FunctionType, mentioned: dict[str, Any]) -> None:
    made.__globals__.update(mentioned)
