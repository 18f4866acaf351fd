"""A byte-level BPE tokenizer whose control tokens text can never produce.

Byte-level: the alphabet is all 256 bytes, so any text has ids and there is no
unknown token. Every digit is its own token, which keeps arithmetic aligned
(DeepSeek-V3 groups up to three, arXiv 2412.19437, section 4.1).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from r1lite.errors import R1Error

# DeepSeek-R1's names, so that its tools find what they look for. `<answer>`
# comes from the prompt of R1-Zero (arXiv 2501.12948, table 1).
CONTROL = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
)
SMALLEST = len(CONTROL) + 256

# Words with the space before them, single digits, runs of other signs, and
# white space that leaves its last blank to the word after it.
SPLIT = r" ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"

# What `r1lite.data.chat.render` does, for tools that read Jinja templates.
# Reasoning of earlier turns is dropped, as in R1; an answer that already
# carries its tags, as generated text does, is not wrapped a second time.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' and loop.first -%}
{{- message['content'] -}}
{%- elif message['role'] == 'user' -%}
{{- '<｜User｜>' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<｜Assistant｜>' -}}
{%- if loop.last and message.get('reasoning_content') is string -%}
{{- '<think>' + message['reasoning_content'] + '</think>' -}}
{%- endif -%}
{%- set answer = message['content'].split('</think>') | last -%}
{%- if '<answer>' in answer -%}
{{- answer + eos_token -}}
{%- else -%}
{{- '<answer>' + answer + '</answer>' + eos_token -}}
{%- endif -%}
{%- else -%}
{{- raise_exception('role ' + message['role'] + ' does not fit here') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<｜Assistant｜>' -}}
{%- if (think is defined and think) or (thinking is defined and thinking) -%}
{{- '<think>' -}}
{%- endif -%}
{%- endif -%}
"""


class R1Tokenizer:
    """Text to ids and back. Control tokens are ids 0 to 8, in CONTROL's order."""

    CONTROL = CONTROL
    bos_id, eos_id, pad_id, user_id, assistant_id = 0, 1, 2, 3, 4
    think_id, think_end_id, answer_id, answer_end_id = 5, 6, 7, 8

    def __init__(self, tokenizer: Tokenizer) -> None:
        for i, token in enumerate(CONTROL):
            if tokenizer.token_to_id(token) != i:
                raise R1Error(
                    f"tokenizer: {token} does not have id {i}; "
                    "use a tokenizer that R1-lite trained"
                )
        # The library would turn "<think>" in a user's text into the control
        # token. This switch is not saved with the tokenizer: set it always.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def backend(self) -> Tokenizer:
        """The library's tokenizer, for what is not offered here."""
        return self._tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> R1Tokenizer:
        """Learn merges from `texts`; the same texts give the same tokenizer.

        The result has fewer ids than `vocab_size` when the text repeats too
        little to fill it.

        Raises:
            R1Error: no room for bytes and control tokens, or no text.
        """
        if vocab_size < SMALLEST:
            raise R1Error(
                f"tokenizer.vocab_size: {vocab_size} does not hold 256 bytes and "
                f"{len(CONTROL)} control tokens; give at least {SMALLEST}"
            )
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(t, special=True) for t in CONTROL],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(map(_encodable, texts), trainer)
        if tokenizer.get_vocab_size() == SMALLEST < vocab_size:
            raise R1Error(
                "tokenizer: the training text holds nothing to merge; give more text"
            )
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str | Path) -> R1Tokenizer:
        """Read the directory (or `tokenizer.json`) that `save` wrote."""
        file = Path(path)
        if file.is_dir():
            file /= "tokenizer.json"
        if not file.is_file():
            raise R1Error(f"tokenizer: {file} is missing; give a saved model's folder")
        try:
            return cls(Tokenizer.from_file(str(file)))
        except R1Error:
            raise
        except Exception as e:  # the library raises a bare Exception
            reason = str(e).splitlines()[0]
            raise R1Error(
                f"tokenizer: {file} is damaged ({reason}); save it again"
            ) from e

    def save(self, path: str | Path) -> None:
        """Write what `transformers.AutoTokenizer` reads too, file by file."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        names = {"bos_token": CONTROL[0], "eos_token": CONTROL[1]}
        names["pad_token"] = CONTROL[2]
        config = {
            **names,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHAT_TEMPLATE,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
        }
        _write(folder / "tokenizer.json", json.loads(self._tokenizer.to_str()))
        _write(folder / "tokenizer_config.json", config)
        _write(folder / "special_tokens_map.json", names)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never a control id, whatever the text says."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts; far faster than one by one."""
        safe = [_encodable(t) for t in texts]
        return [e.ids for e in self._tokenizer.encode_batch_fast(safe)]

    def decode(self, ids: Sequence[int], control: bool = True) -> str:
        """Text of `ids`; `control` keeps control tokens, as their names."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not control))


def _encodable(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _write(path: Path, value: Any) -> None:
    """JSON to a file that is either whole or absent."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(part, path)
