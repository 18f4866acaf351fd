"""Directories on disk: round trips, every way a directory can be wrong."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import tiny_config, tiny_model, token_ids
from torch import Tensor

from r1lite import R1Model, from_pretrained, save_pretrained
from r1lite.errors import R1Error
from r1lite.hub import save as save_module
from r1lite.hub.layout import config_from_hf, config_to_hf, hf_name, our_name
from r1lite.moe.balance import routers

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good directory with MTP, to be damaged."""
    save_pretrained(tiny_model(num_nextn_predict_layers=1), tmp_path / "good")
    return tmp_path / "good"


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in values.items() if v != "DELETE"}))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("limit", [10**9, 15_000, 1], ids=["one", "some", "each"])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_nextn_predict_layers": 1},
        {"tie_word_embeddings": True, "n_shared_experts": 0},
        {"scoring_func": "softmax", "topk_method": "noaux_tc"},
        {"scoring_func": "sigmoid", "topk_method": "greedy"},
    ],
    ids=["mtp", "tied", "softmax with bias", "sigmoid greedy"],
)
def test_every_bit_comes_back(
    changes: dict[str, Any], limit: int, tmp_path: Path
) -> None:
    model = tiny_model(**changes)
    model.save_pretrained(tmp_path / "out", max_shard_size=limit)
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) == 1) == (limit == 10**9)
    again = from_pretrained(tmp_path / "out")
    assert again.config == model.config.with_(num_key_value_heads=4)
    assert not again.training
    want, got = model.state_dict(), again.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    tied = again.lm_head.weight is again.embed_tokens.weight
    assert tied == model.config.tie_word_embeddings
    assert all(p.requires_grad for p in again.parameters())


def test_a_loaded_model_trains_like_the_original(folder: Path) -> None:
    model = from_pretrained(folder).train()
    assert all(r.counts.sum() == 0 for r in routers(model))
    model(token_ids(2, 5)).logits.square().sum().backward()
    assert routers(model)[0].counts.sum() == 20


def test_loading_leaves_the_random_generator_alone(folder: Path) -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    from_pretrained(folder)
    assert torch.equal(torch.rand(3), want)


def test_names_are_those_of_the_release(folder: Path) -> None:
    names = set(load_file(folder / WEIGHTS))
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.1.mlp.experts.7.down_proj.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.1.mlp.shared_experts.up_proj.weight",
        "model.layers.2.eh_proj.weight",
        "model.layers.2.enorm.weight",
        "model.layers.2.hnorm.weight",
        "model.layers.2.mlp.experts.0.gate_proj.weight",
        "model.layers.2.shared_head.norm.weight",
        "model.norm.weight",
        "lm_head.weight",
    } <= names


def test_names_translate_back_and_forth() -> None:
    model = tiny_model(num_nextn_predict_layers=1)
    for name in model.state_dict():
        assert our_name(hf_name(name, model.config), model.config) == name


def test_the_release_repeats_shared_tensors_and_that_is_fine(folder: Path) -> None:
    def add_copies(tensors: dict[str, Tensor]) -> None:
        embed = tensors["model.embed_tokens.weight"]
        tensors["model.layers.2.embed_tokens.weight"] = embed.clone()
        tensors["model.layers.2.shared_head.head.weight"] = embed.clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    want = from_pretrained(folder).state_dict()
    edit_weights(folder, add_copies)
    got = from_pretrained(folder).state_dict()
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_without_mtp_weights_there_is_no_mtp(folder: Path) -> None:
    edit_weights(
        folder,
        lambda t: [t.pop(k) for k in list(t) if k.startswith("model.layers.2.")],
    )
    model = from_pretrained(folder)
    assert model.mtp is None
    assert model.config.num_nextn_predict_layers == 0


def test_dtype_of_file_and_of_choice(tmp_path: Path) -> None:
    save_pretrained(tiny_model().to(torch.bfloat16), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    for asked, want in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        model = from_pretrained(tmp_path, dtype=asked)
        assert model.embed_tokens.weight.dtype == want
        assert routers(model)[0].e_score_correction_bias.dtype == torch.float32


def test_config_reads_old_and_new_ways_of_writing_rope() -> None:
    yarn = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16}
    old = {"model_type": "deepseek_v3", "rope_theta": 500, "rope_scaling": yarn}
    new = {"model_type": "deepseek_v3", "rope_parameters": {"rope_theta": 500, **yarn}}
    for values in (old, new):
        config, dtype = config_from_hf(values, "here")
        assert config.rope_theta == 500 and config.rope_scaling == yarn
        assert dtype == torch.float32
    plain = {"rope_theta": 500.0, "rope_type": "default"}
    config, _ = config_from_hf(
        {"model_type": "deepseek_v3", "rope_parameters": plain}, ""
    )
    assert config.rope_scaling is None


def test_config_of_v2_has_other_defaults() -> None:
    config, _ = config_from_hf({"model_type": "deepseek_v2"}, "here")
    assert (config.scoring_func, config.topk_method) == ("softmax", "greedy")
    assert not config.norm_topk_prob
    many = {"model_type": "deepseek_v3", "eos_token_id": [7, 8], "q_lora_rank": None}
    config, _ = config_from_hf(many, "here")
    assert config.eos_token_id == 7 and config.q_lora_rank is None


def test_config_json_names_a_class() -> None:
    values = config_to_hf(tiny_config(), torch.float32)
    assert values["architectures"] == ["DeepseekV3ForCausalLM"]
    assert values["model_type"] == "deepseek_v3"
    assert values["dtype"] == "float32"


Damage = Callable[[Path], object]
GONE = "model.layers.1.mlp.experts.3.up_proj.weight"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: cannot be"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "not an object"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no model.safetensors"),
    "pickle": (
        lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
        "pickled weights",
    ),
    "cut short": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:5000]),
        "cannot be read as safetensors",
    ),
    "no model_type": (lambda f: edit_config(f, model_type="DELETE"), "model_type None"),
    "quantised": (
        lambda f: edit_config(f, quantization_config={"quant_method": "fp8"}),
        "quantization_config is set",
    ),
    "odd dtype": (lambda f: edit_config(f, dtype="float7"), "dtype 'float7'"),
    "odd value": (lambda f: edit_config(f, n_group=3), "model.n_group"),
    "partial rope": (
        lambda f: edit_config(f, rope_parameters={"partial_rotary_factor": 0.5}),
        "partial_rotary_factor",
    ),
    "missing expert": (
        lambda f: edit_weights(f, lambda t: t.pop(GONE)),
        "layers.1.mlp.experts.gate_up_proj are missing",
    ),
    "missing bias": (
        lambda f: edit_weights(
            f, lambda t: t.pop("model.layers.1.mlp.gate.e_score_correction_bias")
        ),
        "e_score_correction_bias are missing",
    ),
    "half an MTP": (
        lambda f: edit_weights(f, lambda t: t.pop("model.layers.2.enorm.weight")),
        "layers.2.enorm.weight are missing",
    ),
    "foreign tensor": (
        lambda f: edit_weights(f, lambda t: t.update(odd=torch.ones(2))),
        "holds odd, which this config has no place for",
    ),
    "an expert too many": (
        lambda f: edit_weights(
            f, lambda t: t.update({GONE.replace(".3.", ".8."): t[GONE].clone()})
        ),
        "experts.8.up_proj.weight, which this config has no place for",
    ),
    "wrong shape": (
        lambda f: edit_weights(f, lambda t: t.update({GONE: torch.ones(3, 32)})),
        r"experts.3.up_proj.weight has shape \(3, 32\), config.json says \(16, 32\)",
    ),
    "another size": (lambda f: edit_config(f, vocab_size=62), r"says \(62, 32\)"),
    "index without files": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        "names no files",
    ),
    "index to nowhere": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "gone.safetensors"}}'
        ),
        "gone.safetensors: cannot be read",
    ),
    "index out of the directory": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            '{"weight_map": {"a": "../x.safetensors"}}'
        ),
        "outside",
    ),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGES.values(), ids=DAMAGES)
def test_a_bad_directory_is_one_clear_line(
    damage: Damage, says: str, folder: Path
) -> None:
    from_pretrained(folder)
    damage(folder)
    with pytest.raises(R1Error, match=says) as caught:
        from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # what is wrong; what to do


@pytest.mark.parametrize("name", ["./gone", "gone", "a/b/c", "/gone/too"])
def test_no_such_directory(name: str) -> None:
    with pytest.raises(R1Error, match="no such directory"):
        from_pretrained(name)


def test_an_unreachable_hub_id() -> None:
    with pytest.raises(R1Error, match="neither a directory nor reachable"):
        from_pretrained("r1lite-nobody/nothing")


class WordList:
    """Stands for a tokenizer."""

    def save(self, path: Path) -> None:
        (path / "tokenizer.json").write_text("{}")


def test_saving_over_an_old_model_leaves_one_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for limit in (15_000, 10**9, 20_000):
        model = tiny_model()
        save_pretrained(model, tmp_path, WordList(), max_shard_size=limit)
        got = from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(t, got[n]) for n, t in model.state_dict().items())
        single = (tmp_path / WEIGHTS).exists()
        index = (tmp_path / "model.safetensors.index.json").exists()
        assert single != index and single == (limit == 10**9)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "tokenizer.json").exists()
    named = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    on_disk = {p.name for p in tmp_path.glob("*.safetensors")}
    assert set(named["weight_map"].values()) == on_disk


def test_a_full_disk_leaves_the_old_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save_module, "save_file", full)
    with pytest.raises(R1Error, match=r"No space left .*; free some space"):
        save_pretrained(R1Model(tiny_config()), folder)
    with pytest.raises(R1Error, match="could not be saved"):
        save_pretrained(R1Model(tiny_config()), folder.parent / "new")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["good"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(R1Error, match="could not be saved"):
        save_pretrained(tiny_model(), tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_an_expert_given_twice_does_not_stand_for_another(tmp_path: Path) -> None:
    save_pretrained(tiny_model(), tmp_path, max_shard_size=8000)
    index = tmp_path / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    other = GONE.replace(".3.", ".4.")
    file, last = tmp_path / names[GONE], tmp_path / sorted(names.values())[-1]
    tensors = load_file(tmp_path / names[other])
    tensors.pop(other)
    save_file(tensors, tmp_path / names[other])
    tensors = load_file(last)
    tensors[GONE] = load_file(file)[GONE]
    save_file(tensors, last)
    assert last != file
    with pytest.raises(R1Error, match=r"experts.3.up_proj.weight is given twice; copy"):
        from_pretrained(tmp_path)


def test_an_interrupted_overwrite_leaves_a_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the shards of the old model are deleted."""
    save_pretrained(tiny_model(), tmp_path / "m", max_shard_size=8000)
    new = tiny_model()
    with torch.no_grad():
        new.embed_tokens.weight.add_(1)
    delete, deleted = Path.unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if len(deleted) == 2:
            raise KeyboardInterrupt
        deleted.append(path.name)
        delete(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(new, tmp_path / "m")
    monkeypatch.undo()
    got = from_pretrained(tmp_path / "m")
    assert torch.equal(got.embed_tokens.weight, new.embed_tokens.weight)
