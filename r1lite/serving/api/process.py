"""`r1lite serve DIR`: load, listen, serve, and leave without dropping anyone."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import signal
import socket
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
import uvicorn
from rich.console import Console
from rich.markup import escape

from r1lite.data.tokenizer import R1Tokenizer
from r1lite.errors import R1Error
from r1lite.hub import from_pretrained
from r1lite.model import R1Model
from r1lite.planner.count import parameters
from r1lite.serving.api.app import Limits, build_app
from r1lite.serving.api.call import Served
from r1lite.serving.asynchronous import AsyncEngine
from r1lite.serving.types import EngineConfig
from r1lite.tasks import stream

HANDLED = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Options:
    """What the command line decides. `port` 0 takes a free one.

    name: of the model in the API; default: the directory's name.
    drain_seconds: how long running answers may go on after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    api_key: str | None = None
    device: str = "cpu"
    engine: EngineConfig = field(default_factory=EngineConfig)
    limits: Limits = field(default_factory=Limits)
    drain_seconds: float = 30.0


def serve(directory: Path, options: Options, console: Console) -> None:
    """Serve a saved model until SIGTERM or Ctrl-C; running answers are finished.

    Raises:
        R1Error: the directory, the port or an option does not do.
    """
    check_directory(directory)
    with _listening(options.host, options.port) as listener:
        with console.status(f"loading {escape(str(directory))}"):
            model, tokenizer = _load(directory, options.device)
            engine = AsyncEngine(model, tokenizer, options.engine)
        cache = engine.stats().pages_total * options.engine.page_size
        app = build_app(
            engine,
            tokenizer,
            options.name or _name(directory),
            min(model.config.max_position_embeddings, cache),
            options.api_key,
            options.limits,
            _examples(directory),
        )
        _announce(console, app.state.served, model, options, listener)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False
        )
        server = _Server(config, app.state.served, options.drain_seconds)
        asyncio.run(server.serve([listener]))
    console.print(f"stopped; {_end(server, options.drain_seconds)}")


def _end(server: _Server, seconds: float) -> str:
    """How the requests fared that were under way."""
    if server.clean:
        return "every answer was finished"
    if server.served.engine.failed:
        return "the engine had failed, its error stands above"
    return f"answers that took over {seconds:g} s were cut"


def _load(directory: Path, device: str) -> tuple[R1Model, R1Tokenizer]:
    """On a CPU in 32 bits, whatever is stored: 16-bit products are slower there."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise R1Error(f"--device {device}: {reason}; use cpu") from error
    dtype = torch.float32 if place.type == "cpu" else None
    model = from_pretrained(directory, dtype, place)
    tokenizer = R1Tokenizer.load(directory)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise R1Error(
            f"{directory}: its tokenizer has {tokenizer.vocab_size} ids, its model "
            f"{model.config.vocab_size}; save both together again"
        )
    return model, tokenizer


def check_directory(directory: Path) -> None:
    """Refuse what cannot be a chat model, before anything big is read."""
    if not directory.is_dir():
        raise R1Error(
            f"{directory}: no such directory; train a model with `r1lite run nano`"
        )
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise R1Error(
                f"{directory}: holds no {name}; name a directory that holds a model "
                "and its tokenizer, e.g. runs/nano/final"
            )
    if not _has_template(directory):
        raise R1Error(
            f"{directory}: has no chat template; save its tokenizer again with "
            "R1Tokenizer.save"
        )


def _has_template(directory: Path) -> bool:
    if (directory / "chat_template.jinja").is_file():
        return True
    file = directory / "tokenizer_config.json"
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def _name(directory: Path) -> str:
    """The directory's name; of runs/nano/final the run's."""
    whole = directory.resolve()
    return whole.parent.name if whole.name == "final" else whole.name


def _examples(directory: Path) -> list[str]:
    """Questions of the tasks that the model was trained on, if its run is here."""
    recipe = directory.resolve().parent / "recipe.toml"
    try:
        shares = tomllib.loads(recipe.read_text(encoding="utf-8"))["tasks"]["shares"]
        problems = [stream(shares, seed=0).problem_at(i) for i in range(12)]
    except (OSError, ValueError, KeyError, TypeError, R1Error):
        return []
    return list({(p.family, p.level): p.question for p in problems}.values())[:4]


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket: a taken port is found before the model is loaded."""
    remedies = {
        errno.EADDRINUSE: "another program has this port; choose one with --port",
        errno.EACCES: "this port needs more rights; choose one above 1023",
        errno.EADDRNOTAVAIL: "this machine does not have this address",
    }
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind)
    except (OSError, OverflowError) as error:
        raise R1Error(
            f"--host {host}: is no address ({error}); give 127.0.0.1 or 0.0.0.0"
        ) from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(2048)
        except OSError as error:
            remedy = remedies.get(error.errno or 0, "choose another")
            raise R1Error(f"{host}:{port}: {error.strerror}; {remedy}") from error
        yield listener


def _announce(
    console: Console,
    served: Served,
    model: R1Model,
    options: Options,
    listener: socket.socket,
) -> None:
    """One line that says where; one more when anybody could come."""
    host, port = options.host, listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    count = sum(parameters(model.config).values()) / 1e6  # quantised or not
    console.print(
        f"serving {escape(served.name)} ({count:.1f} M parameters, context "
        f"{served.context}) on http://{escape(shown)}:{port} "
        "(chat page; API under /v1; Ctrl-C stops)",
        soft_wrap=True,
    )
    if options.api_key is None and host not in ("127.0.0.1", "::1", "localhost"):
        console.print(
            "[yellow]anyone who reaches this address can use the model; "
            "set a key with --api-key or R1LITE_API_KEY[/yellow]",
            soft_wrap=True,
        )
    console.file.flush()  # also where nobody sits at the terminal


class _Server(uvicorn.Server):
    """Leaves in order: no new requests, the running ones finish, then exit 0.

    clean: nothing had to be cut off. A second signal leaves at once.
    """

    def __init__(self, config: uvicorn.Config, served: Served, seconds: float) -> None:
        # Beyond the drain only a client that does not read can keep us.
        config.timeout_graceful_shutdown = math.ceil(seconds) + 5
        super().__init__(config)
        self.served, self._seconds = served, seconds
        self.clean = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal is not raised again: we leave with 0."""
        before = {s: signal.signal(s, self.handle_exit) for s in HANDLED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note the signal; the loop sees it within a tenth of a second."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = self.served.draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the engine finish while the connections wait for it."""
        self.served.draining = True
        drain = asyncio.create_task(self.served.engine.drain(self._seconds))
        await super().shutdown(sockets)
        self.clean = drain.done() and drain.result()
        drain.cancel()
