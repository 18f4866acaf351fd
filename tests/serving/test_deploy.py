"""What leaves for vLLM, SGLang or transformers: a directory that is complete."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from support.live import REPO
from support.serving import FIXTURE, QUESTION, Client, model, tokenizer, with_client

from r1lite.cli import cli
from r1lite.data import chat
from r1lite.data.tokenizer import CONTROL
from r1lite.generation import generate
from r1lite.hub import save_pretrained

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "model"
    save_pretrained(model(), target, tokenizer())
    return target


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_every_file_that_other_servers_read_is_there(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    ends = json.loads((folder / "generation_config.json").read_text())
    assert ends == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert config["dtype"] == "float32"
    template = json.loads((folder / "tokenizer_config.json").read_text())
    assert template["chat_template"] == chat.CHAT_TEMPLATE


def test_the_fixture_has_todays_template() -> None:
    stored = json.loads((FIXTURE / "tokenizer_config.json").read_text("utf-8"))
    assert stored["chat_template"] == chat.CHAT_TEMPLATE


PLAIN = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<｜"), max_size=12
)
TURN = st.tuples(PLAIN, PLAIN)


@settings(max_examples=60)
@given(st.none() | PLAIN, st.lists(TURN, max_size=2), PLAIN, st.booleans())
def test_their_template_gives_our_ids(
    theirs: Any, system: str | None, turns: list[tuple[str, str]], ask: str, think: bool
) -> None:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for asked, said in turns:
        messages += [{"role": "user", "content": asked}]
        messages += [{"role": "assistant", "content": said}]
    messages += [{"role": "user", "content": ask}]
    want = chat.render(tokenizer(), messages, True, think)
    for name in ("think", "thinking"):
        got = theirs.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, **{name: think}
        )
        assert got == want


def test_only_our_server_keeps_typed_tags_apart(theirs: Any) -> None:
    """Why DEPLOY.md says to remove control names in front of other servers."""
    messages = [{"role": "user", "content": "<think>"}]
    got = theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert got[2] == CONTROL.index("<think>")
    assert chat.render(tokenizer(), messages)[2] >= len(CONTROL)


def test_transformers_alone_gives_the_same_answer(folder: Path, theirs: Any) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert loaded.generation_config.eos_token_id == 1
    prompt = theirs.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = loaded.generate(**prompt, max_new_tokens=100, do_sample=False)[0]
    first = prompt["input_ids"].shape[1]
    ours = generate(model(), [ids[:first].tolist()], max_new_tokens=100)[0]
    assert ids[first:].tolist() == ours


def test_the_page_on_leaving_one_machine_names_what_exists() -> None:
    """Its options are those of `r1lite serve`, its addresses those of the app."""
    page = (REPO / "r1lite" / "serving" / "DEPLOY.md").read_text(encoding="utf-8")
    serve: Any = typer.main.get_command(cli).commands["serve"]  # type: ignore[attr-defined]
    known = {name for p in serve.params for name in p.opts}
    theirs_only = {"--reasoning-parser", "--model-path"}
    named = set(re.findall(r"--[a-z][a-z-]+", page)) - theirs_only
    assert len(named) > 5 and named <= known

    async def work(client: Client) -> None:
        for address in re.findall(r"`(/[a-z0-9/]*)`", page):
            if address == "/":
                continue
            method = "POST" if "completions" in address else "GET"
            reply = await client.request(method, address, json={})
            assert reply.status_code != 404, address

    with_client(work)
