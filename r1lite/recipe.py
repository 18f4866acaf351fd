"""A recipe: one TOML file that describes one whole run, checked before it starts."""

from __future__ import annotations

import hashlib
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field

from r1lite.config import R1Config
from r1lite.data.mixture import DataConfig
from r1lite.errors import R1Error
from r1lite.evaluation import EvalConfig
from r1lite.settings import Section, parse
from r1lite.tasks import stream
from r1lite.tasks.demonstrations import DemoConfig
from r1lite.tasks.families import family_level
from r1lite.training.compute import ComputeConfig, ParallelConfig
from r1lite.training.distill import DistillConfig
from r1lite.training.grpo import GRPOConfig
from r1lite.training.guard import GuardConfig
from r1lite.training.ppo import PPOConfig
from r1lite.training.pretrain import PretrainConfig
from r1lite.training.rejection import ExpertConfig
from r1lite.training.sft import SFTConfig

Rival = Literal["clean", "continued", "expert"]


class TokenizerConfig(Section):
    """Section `[tokenizer]`: a byte-level BPE trained on the mixture's text."""

    vocab_size: int = 1024
    train_bytes: int = 3_000_000


class MathConfig(Section):
    """Section `[mathematics]`: the generated domain of pretraining.

    `with_steps` is the share of worked documents that write their steps.
    """

    with_steps: float = 0.5


class TasksConfig(Section):
    """Section `[tasks]`: "family/level" = weight, in every stage that has tasks."""

    shares: dict[str, float]


class ControlsConfig(Section):
    """Section `[controls]`: which rivals of RL are trained beside it.

    Forced reasoning and the temperature sweep need no training: always there
    when `enabled`. Of the others those in `trained`: clean SFT has the SFT stage's
    budget, continued SFT and expert iteration have RL's. Without one of them the
    verdict can only be "incomplete", or that another reached the result.
    """

    enabled: bool = True
    trained: tuple[Rival, ...] = ("clean", "continued", "expert")
    expert: ExpertConfig = ExpertConfig()


class R1Section(Section):
    """Section `[r1]`: what follows GRPO in R1, and rivals; off unless `enabled`.

    `ask` problems get `samples` answers each from the GRPO model; of the right ones
    `keep` each go into the rejection SFT, which starts from the base, with `general`
    as the share of dialogues. `second` is the RL after it (temperature 0.7 in R1).
    `student` holds the fields in which the student's model differs.
    """

    enabled: bool = False
    ppo: PPOConfig = PPOConfig()
    ask: int = 3000
    samples: int = 2
    keep: int = 2
    general: float = 0.1
    rejection: SFTConfig = SFTConfig()
    second: GRPOConfig = GRPOConfig(temperature=0.7, kl_coef=0.001)
    student: dict[str, int] = Field(
        default_factory=lambda: {"hidden_size": 64, "num_hidden_layers": 2}
    )
    student_pretrain: PretrainConfig = PretrainConfig()
    student_sft: SFTConfig = SFTConfig()
    distill: DistillConfig = DistillConfig()


class GoalsConfig(Section):
    """Section `[goals]`: what the run promises; the report says if it was kept.

    All are measured on the test split with greedy decoding.
    """

    before_at_most: float | None = None
    after_at_least: float | None = None
    length_ratio_at_least: float | None = None
    format_at_least: float | None = None
    rl_seconds_at_most: float | None = None
    total_seconds_at_most: float | None = None


class Recipe(Section):
    """The whole run. `model` is a preset's name and fields that differ.

    `mine` is written by `--mine`: the exercises whose code replaced the package's.
    """

    name: str
    description: str = ""
    seed: int = 0
    checkpoint_seconds: float = 30.0
    model: dict[str, Any]
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    mathematics: MathConfig = MathConfig()
    tasks: TasksConfig
    pretrain: PretrainConfig = PretrainConfig()
    demonstrations: DemoConfig = DemoConfig()
    sft: SFTConfig = SFTConfig()
    grpo: GRPOConfig = GRPOConfig()
    controls: ControlsConfig = ControlsConfig()
    r1: R1Section = R1Section()
    evaluation: EvalConfig = EvalConfig()
    goals: GoalsConfig = GoalsConfig()
    guard: GuardConfig | None = None
    compute: ComputeConfig = ComputeConfig()
    parallel: ParallelConfig = ParallelConfig()
    mine: dict[str, str] | None = None
    tried: tuple[dict[str, str | bool], ...] = ()

    def model_config_for(self, vocab_size: int | None = None) -> R1Config:
        """The model's configuration, its vocabulary set to the tokenizer's."""
        changes = dict(self.model)
        config = R1Config.preset(str(changes.pop("preset", "nano")))
        if vocab_size is not None:
            changes["vocab_size"] = vocab_size
        return config.with_(**changes)

    def fingerprint(self) -> str:
        """Changes with anything that changes what the run computes.

        On how many ranks, on what device and in which pieces does not.
        """
        how: Any = {"parallel": True, "compute": {"device", "keep", "micro_rows"}}
        values = self.model_dump(mode="json", exclude_none=True, exclude=how)
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        """The resolved recipe as TOML; unset optional fields are left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


# A temperature or a clip of 0 would leave nothing to learn, without an error.
LEAST = {
    "pretrain.optim.clip": 1e-6,
    "sft.tokens": 1,
    "sft.optim.clip": 1e-6,
    "grpo.questions": 1,
    "grpo.group_size": 2,  # one alone cannot be compared
    "grpo.minibatches": 1,
    "grpo.temperature": 1e-6,
    "grpo.optim.clip": 1e-6,
    "controls.expert.questions": 1,
    "controls.expert.group_size": 1,
    "controls.expert.temperature": 1e-6,
    "evaluation.problems": 1,
    "evaluation.validation_problems": 1,
}
LEAST_R1 = {
    "r1.second.questions": 1,
    "r1.second.group_size": 2,
    "r1.second.minibatches": 1,
    "r1.second.temperature": 1e-6,
    "r1.rejection.tokens": 1,
    "r1.student_sft.tokens": 1,
    "r1.distill.tokens": 1,
}


def names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("r1lite") / "recipes"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))


def load(name_or_path: str, changes: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe by name or file path; `changes` maps "a.b" to a value.

    Raises:
        R1Error: no such recipe, not TOML, or a field that does not fit.
    """
    values = _read(name_or_path)
    for dotted, value in (changes or {}).items():
        _assign(values, dotted, value)
    recipe = parse(Recipe, _filled(Recipe, values), "recipe")
    _check_early(recipe)
    return recipe


def _filled(section: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    """What is left out of a part that is given stays as this recipe has it.

    Without it a part with one field in it would begin from the defaults of its
    class: with `sft.optim.lr` alone, Muon would become AdamW.
    """
    out = dict(values)
    for name, field in section.model_fields.items():
        default, given = field.default, out.get(name)
        if isinstance(default, Section) and isinstance(given, dict):
            own = default.model_dump(mode="json", exclude_unset=True)
            out[name] = _filled(type(default), {**own, **given})
    return out


def read(path: Path) -> Recipe:
    """The recipe that a run directory keeps.

    Raises:
        R1Error: it is not a recipe of this version.
    """
    return parse(Recipe, _read(str(path)), str(path))


def with_section(recipe: Recipe, name: str, values: dict[str, Any]) -> Recipe:
    """The recipe with one section replaced, checked as a file is.

    Raises:
        R1Error: a field that does not fit.
    """
    plain = recipe.model_dump(mode="json", exclude_none=True)
    return parse(Recipe, _filled(Recipe, {**plain, name: values}), "recipe")


def _check_early(recipe: Recipe) -> None:
    """Find now what a stage would find after minutes of training."""
    context = recipe.model_config_for().max_position_embeddings
    stream(recipe.tasks.shares, recipe.seed)
    _check_plan("pretrain", recipe.pretrain)
    _check_plan("r1.student_pretrain", recipe.r1.student_pretrain)
    _check_numbers(recipe)
    expert = recipe.controls.expert
    rows = {
        "pretrain": recipe.pretrain.seq_len,
        "sft": recipe.sft.seq_len,
        "controls.expert": expert.seq_len,
    }
    answers = {
        "grpo.max_new_tokens": recipe.grpo.max_new_tokens,
        "controls.expert.max_new_tokens": expert.max_new_tokens,
        "evaluation.max_new_tokens": recipe.evaluation.max_new_tokens,
    }
    if recipe.r1.enabled:
        r1 = recipe.r1
        answers["r1.ppo.max_new_tokens"] = r1.ppo.max_new_tokens
        answers["r1.second.max_new_tokens"] = r1.second.max_new_tokens
        rows |= {
            "r1.rejection": r1.rejection.seq_len,
            "r1.student_pretrain": r1.student_pretrain.seq_len,
            "r1.student_sft": r1.student_sft.seq_len,
            "r1.distill": r1.distill.seq_len,
        }
    room = {f"{k}.seq_len": (v, context) for k, v in rows.items()}
    room |= {k: (v, context - 1) for k, v in answers.items()}  # one for the question
    for name, (length, most) in room.items():
        if length > most:
            raise R1Error(
                f"{name}: {length} tokens exceed the context of {context}; lower it "
                "or raise model.max_position_embeddings"
            )


def _check_numbers(recipe: Recipe) -> None:
    """Refuse what would stop a stage after others have run, or teach it nothing."""
    for name in recipe.evaluation.levels:
        try:
            family_level(name)
        except R1Error as e:
            raise R1Error(f"evaluation.levels: {e}") from e
    guard = recipe.guard
    if guard is not None and guard.window < guard.first:
        raise R1Error(
            f"guard.window: {guard.window} steps hold no {guard.first} to judge by; "
            "give at least guard.first"
        )
    least = LEAST | (LEAST_R1 if recipe.r1.enabled else {})
    for place, low in least.items():
        value: Any = recipe
        for name in place.split("."):
            value = getattr(value, name)
        if value < low:
            raise R1Error(f"{place}: {value} is too small; give at least {low:g}")


def _check_plan(name: str, config: PretrainConfig) -> None:
    try:
        config.plan()
    except R1Error as e:
        raise R1Error(f"{name}.{e}") from e


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise R1Error(f"recipe: {path} is not a file; give a recipe's name or path")
        text = path.read_text()
    elif name_or_path in names():
        folder = resources.files("r1lite") / "recipes"
        text = (folder / f"{name_or_path}.toml").read_text()
    else:
        known = ", ".join(names())
        raise R1Error(
            f"recipe: {name_or_path!r} is not known; choose {known} or a .toml file"
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise R1Error(f"recipe: {name_or_path} is not valid TOML ({e}); fix it") from e


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise R1Error(
                f"{dotted}: {name} is not a section; fix the name after --set"
            )
    values[last] = value


def parse_assignment(text: str) -> tuple[str, Any]:
    """`a.b=value` from the command line; the value is TOML (a bare word is text)."""
    name, equals, raw = text.partition("=")
    if not equals or not name:
        raise R1Error(
            f"--set {text}: is not NAME=VALUE; write e.g. --set grpo.steps=20"
        )
    try:
        return name, tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        return name, raw
