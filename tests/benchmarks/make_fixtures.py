"""Cuts the models of a `nano` run down to what a chapter can carry.

    python tests/benchmarks/make_fixtures.py runs/nano chapters/fixtures/nano

Each stage's model is kept in float16 and without its MTP module, so that it stays
below 2 MB; the recipe that made it, with its seed, stands beside it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from r1lite import R1Model, from_pretrained
from r1lite.data.tokenizer import R1Tokenizer

STAGES = ("base", "sft", "grpo")


def cut(model: R1Model) -> R1Model:
    """The same trunk in float16, without the MTP module."""
    small = R1Model(model.config.with_(num_nextn_predict_layers=0))
    state = model.state_dict()
    small.load_state_dict({name: state[name] for name in small.state_dict()})
    # The routers' bias is a buffer that decides ties: it keeps its precision.
    bias = {n: b.clone() for n, b in small.named_buffers()}
    small.half()
    for name, buffer in bias.items():
        owner, _, last = name.rpartition(".")
        setattr(small.get_submodule(owner), last, buffer)
    return small


def main(run: Path, out: Path) -> None:
    """Write `out`/base, sft, grpo, recipe.toml and made.json."""
    for stage in STAGES:
        tokenizer = R1Tokenizer.load(run / "tokenizer")
        cut(from_pretrained(run / stage)).save_pretrained(
            out / stage, tokenizer=tokenizer
        )
        size = sum(f.stat().st_size for f in (out / stage).iterdir())
        print(f"{stage}: {size:,} bytes")
    shutil.copy(run / "recipe.toml", out / "recipe.toml")
    report = json.loads((run / "report.json").read_text())
    made = {"recipe": report["recipe"], "seed": report["seed"], **report["machine"]}
    (out / "made.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
