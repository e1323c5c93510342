"""Every key of every config misspelt, mistyped and duplicated; overrides; the command line."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.gsm8k import Problem
from posttrain.base.errors import ConfigError
from posttrain.run.folder import RunFolder
from posttrain.settings import DPOSettings, GRPOSettings, Section, SFTSettings
from posttrain.settings.command import SETTINGS, load_settings, parse_command_line
from posttrain.settings.data import TAKEN
from posttrain.settings.export import Parity
from posttrain.settings.extra import (
    CHOICES,
    NESTED,
    OWNED,
    REMOVED,
    UNSUPPORTED,
    check_extra,
)
from posttrain.settings.help import OFTEN, describe, listed
from posttrain.settings.section import FORMER
from posttrain.settings.strict_yaml import read_yaml
from posttrain.settings.trainer_fields import config_fields
from posttrain.train.arguments import owned_arguments
from rewards import resolve
from scripts.grpo import load_rewards, print_example, trainer_row
from tests.helpers import CONFIGS, ROOT, settings_class
from tests.unit.conftest import Ask

Tree = dict[str, Any]
KeyPath = tuple[str, ...]

CONFIG_CLASSES = {
    DPOSettings: "trl/trainer/dpo_config.py:DPOConfig",
    GRPOSettings: "trl/trainer/grpo_config.py:GRPOConfig",
    SFTSettings: "trl/trainer/sft_config.py:SFTConfig",
}
# Settings that may be null: everything else must be given a value.
NULLABLE = {
    "model.revision",
    "model.config_without_bf16",
    *("data.eval", "data.problems"),
    *(
        f"data.{side}.{name}"
        for side in ("train", "eval", "problems")
        for name in ("subset", "revision", "limit")
    ),
    "data.columns.ignored",
    "data.columns.system",
    "data.columns.turn",
    "data.language",
    "prompt.system",
    "training.ld_alpha",
    "training.loss_weights",
    "training.steps_per_generation",
    "evaluation.batch_size",
    *("evaluation.limit", "evaluation.every", "run.keep", "run.patience"),
    *(f"health.{name}" for name in ("every", "max_skipped_steps", "max_still_steps")),
    *(f"health.{name}" for name in ("max_chosen_drop", "max_flat_groups", "max_truncated")),
    *(f"health.{name}" for name in ("min_reasoning", "max_kl", "max_unscored")),
    "health.max_sampling_difference",
    "run.threads",
}


def config_class(path: Path) -> str:
    return CONFIG_CLASSES[settings_class(path)]


def dotted(path: KeyPath) -> str:
    return ".".join(path)


def walk(tree: Tree, above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key of a tree, sections included, with its value."""
    for key, value in tree.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from walk(value, (*above, key))


def changed(tree: Tree, path: KeyPath, change: Callable[[Tree, str], None]) -> Tree:
    """A deep copy of the tree in which `change(parent, key)` was applied at `path`."""
    copy = json.loads(json.dumps(tree))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return copy


def load(tree: Tree, cls: type[Section], folder: Path) -> Section:
    path = folder / "changed.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return load_settings(cls, path)


def resolved(path: Path) -> Tree:
    """The config with every default written out, as a run folder keeps it."""
    return load_settings(settings_class(path), path).model_dump(mode="json")


DEMOS = [path for path in CONFIGS if "demo" in path.stem]
TREES = {path.stem: read_yaml(path) for path in CONFIGS}
# Defaults included once for each trainer: then every setting there is goes through the tests below.
TREES |= {f"{path.stem} resolved": resolved(path) for path in DEMOS}
RESOLVED = [f"{path.stem} resolved" for path in DEMOS]
CLASSES = {name: settings_class(Path(name)) for name in TREES}
# `rewards` holds names of functions, `training.extra` names of the trainer's arguments, and
# `prompt.chat_template_kwargs` names of a template's variables: they have tests of their own.
KEYS = {
    name: [
        path
        for path, _ in walk(tree)
        if (path[0] != "rewards" or len(path) == 1) and "chat_template_kwargs" not in path[:-1]
    ]
    for name, tree in TREES.items()
}


def test_the_trees_are_right_as_they_are(tmp_path: Path) -> None:
    """Or the tests below would see errors for another reason than theirs."""
    assert len(TREES) == len(CONFIGS) + len(SETTINGS)
    for name, tree in TREES.items():
        load(tree, CLASSES[name], tmp_path)


# --- misspelt -----------------------------------------------------------------------------------


@cache
def misspellings(word: str) -> list[str]:
    """The word with each letter dropped, doubled, or swapped with the next one."""
    found = []
    for i in range(len(word)):
        found.append(word[:i] + word[i + 1 :])
        found.append(word[: i + 1] + word[i:])
        found.append(word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :])
    return [wrong for wrong in dict.fromkeys(found) if wrong not in (word, "")]


def clear_misspellings(word: str, others: set[str]) -> list[str]:
    """Those that no other valid name could have been meant by: `f16` may be bf16 or fp16."""

    def could_mean(wrong: str, other: str) -> bool:
        differing = sum(a != b for a, b in zip(wrong, other, strict=False))
        one_replaced = len(wrong) == len(other) and differing == 1
        return wrong == other or one_replaced or wrong in misspellings(other)

    return [w for w in misspellings(word) if not any(could_mean(w, other) for other in others)]


def fields_beside(cls: type[Section], path: KeyPath) -> set[str]:
    """The other valid names beside a key, read off the settings classes."""
    current: Any = cls
    for key in path[:-1]:
        annotation = current.model_fields[key].annotation
        kinds = (annotation, *getattr(annotation, "__args__", ()))
        current = next(k for k in kinds if isinstance(k, type) and issubclass(k, Section))
    return set(current.model_fields) - {path[-1]}


@pytest.mark.parametrize("name", TREES)
def test_a_misspelt_key(name: str, tmp_path: Path) -> None:
    tree, cls = TREES[name], CLASSES[name]
    for path in KEYS[name]:
        wrong_names = clear_misspellings(path[-1], fields_beside(cls, path))
        wrong = wrong_names[len(dotted(path)) % len(wrong_names)]  # the same letter every time

        def misspell(parent: Tree, key: str, wrong: str = wrong) -> None:
            parent[wrong] = parent.pop(key)

        with pytest.raises(ConfigError) as caught:
            load(changed(tree, path, misspell), cls, tmp_path)
        expected = f"{dotted((*path[:-1], wrong))}: unknown setting. Did you mean '{path[-1]}'?"
        assert expected in str(caught.value)


@pytest.mark.parametrize("name", RESOLVED)
def test_every_letter_of_every_key_misspelt(name: str, tmp_path: Path) -> None:
    """All at once, beside the right keys: each wrong one must be named."""
    cls, expected = CLASSES[name], []
    tree = json.loads(json.dumps(TREES[name]))
    for path, _ in walk(TREES[name]):
        if path[0] == "rewards" and len(path) > 1:
            continue
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        for wrong in clear_misspellings(path[-1], fields_beside(cls, path)):
            parent[wrong] = 1
            wrong_path = dotted((*path[:-1], wrong))
            expected.append(f"{wrong_path}: unknown setting. Did you mean '{path[-1]}'?")
    with pytest.raises(ConfigError) as caught:
        load(tree, cls, tmp_path)
    lines = str(caught.value).removeprefix(f"{tmp_path / 'changed.yaml'}: ").splitlines()
    assert sorted(line.strip() for line in lines) == sorted(expected)
    assert len(expected) > 1000


@pytest.mark.parametrize(
    "where", ["", "model", "lora", "data", "data.train", "data.columns", "training", "run"]
)
def test_a_key_far_from_every_name_is_refused_with_the_list(where: str, tmp_path: Path) -> None:
    path = (*filter(None, where.split(".")), "zzzzzz")
    tree = changed(TREES["dpo_french_t4"], path, lambda parent, key: parent.update({key: 1}))
    names = "--help all lists" if where == "training" else "Valid: "  # there they are many
    said = rf"{re.escape(dotted(path))}: unknown setting\. {names}"
    with pytest.raises(ConfigError, match=said):
        load(tree, DPOSettings, tmp_path)


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    tree = json.loads(json.dumps(TREES["grpo_demo"]))
    tree["modle"] = tree.pop("model")
    tree["lora"]["r"] = "sixteen"
    tree["training"]["num_generation"] = tree["training"].pop("num_generations")
    with pytest.raises(ConfigError) as caught:
        load(tree, GRPOSettings, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'changed.yaml'}: ")
    for part in ("modle: unknown", "model: missing", "lora.r: ", "training.num_generation: "):
        assert part in message


@pytest.mark.parametrize("reward", ["format", "correctness"])
@pytest.mark.parametrize("name", [name for name in TREES if name.startswith("grpo")])
def test_a_misspelt_reward(reward: str, name: str, tmp_path: Path) -> None:
    for wrong in misspellings(reward):

        def misspell(parent: Tree, key: str, wrong: str = wrong) -> None:
            parent[wrong] = parent.pop(key)

        settings = load(changed(TREES[name], ("rewards", reward), misspell), GRPOSettings, tmp_path)
        assert isinstance(settings, GRPOSettings)
        with pytest.raises(ConfigError, match=rf"^rewards\b.*'{wrong}'") as caught:
            load_rewards(settings, Problem("1 + 1?", "2"))
        assert f"did you mean '{reward}'" in str(caught.value)


class Template:
    """As much of a tokenizer as a prompt needs."""

    def apply_chat_template(self, turns: list[dict[str, str]], **_: Any) -> str:
        return "\n".join(turn["content"] for turn in turns)


REWARD = """
seen = []

def level(completions, question, answer, level, **columns):
    seen.append((completions, question, answer, level))
    return [float(turns[-1]["content"].count(answer[0]) > level[0]) for turns in completions]

def picky(completions, **columns):
    return [{"": 0.0, "It is 2.": None}.get(turns[-1]["content"], "much") for turns in completions]
"""


def test_a_dry_run_calls_rewards_as_training_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With message lists and every column of the row."""
    (tmp_path / "mine.py").write_text(REWARD, encoding="utf-8")
    name = f"{tmp_path / 'mine.py'}:level"
    tree = {**TREES["grpo_demo"], "rewards": {name: 0.5, "format": 1.0}}
    settings = load(tree, GRPOSettings, tmp_path)
    assert isinstance(settings, GRPOSettings)
    problem = Problem("1 + 1?", "2", columns={"level": 0})
    row = trainer_row(problem, settings)
    assert [turn["role"] for turn in row.pop("prompt")] == ["system", "user"]
    assert row == {"question": "1 + 1?", "answer": "2", "level": 0}
    functions = load_rewards(settings, problem)
    print_example(problem, Template(), settings, functions)
    said = capsys.readouterr().out
    assert f"completion 'It is 2.' earns 0.5 x {name} 1 + format 0 = 0.5" in said
    tried, shown = functions[name].__globals__["seen"]  # type: ignore[attr-defined]
    for completions, *columns in (tried, shown):
        assert all(turns[-1]["role"] == "assistant" for turns in completions)
        assert columns == [["1 + 1?"] * 3, ["2"] * 3, [0] * 3]


def test_a_reward_that_fails_in_a_dry_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARD, encoding="utf-8")
    name = f"{tmp_path / 'mine.py'}:picky"
    settings = load({**TREES["grpo_demo"], "rewards": {name: 1.0}}, GRPOSettings, tmp_path)
    assert isinstance(settings, GRPOSettings)
    functions = {name: resolve(name)}
    with pytest.raises(ConfigError, match=r"^rewards: .*picky' returned 'much'"):
        print_example(Problem("1 + 1?", "2"), Template(), settings, functions)


# --- mistyped -----------------------------------------------------------------------------------

TEXT, NUMBER, FRACTION, LIST, SECTION = "many", 7, 1.5, ["a", "b"], {"a": 1}


def wrong_values(path: KeyPath, value: Any, whole: bool) -> list[Any]:
    """Values of every other type than the setting's."""
    if isinstance(value, bool):
        wrong = [TEXT, "true", "yes", 1, 0, FRACTION, LIST, SECTION]
    elif isinstance(value, str):
        wrong = [NUMBER, FRACTION, True, LIST, SECTION]
    elif isinstance(value, int | float):
        wrong = [TEXT, "5e-6", "7", True, False, LIST, SECTION]
        wrong += [FRACTION] if whole else []
    elif isinstance(value, list):
        wrong = [TEXT, NUMBER, True, SECTION, [SECTION], [None], [True], [*value, 7]]
    else:
        assert isinstance(value, dict)
        wrong = [TEXT, NUMBER, FRACTION, True, LIST]
    return wrong if dotted(path) in NULLABLE else [*wrong, None]


FLOATS = {  # every other number counts something, and 1.5 of it makes no sense
    "model.min_gpu_memory_gb",
    "lora.dropout",
    *(
        f"training.{name}"
        for name in (
            *("num_train_epochs", "learning_rate", "warmup_steps", "weight_decay"),
            *("max_grad_norm", "beta", "label_smoothing", "temperature", "top_p", "epsilon"),
        )
    ),
    "evaluation.temperature",
    *(f"export.parity.{name}" for name in Parity.model_fields if name.startswith("max_")),
    *(f"health.{name}" for name in ("max_chosen_drop", "max_flat_groups", "max_truncated")),
    *(f"health.{name}" for name in ("min_reasoning", "max_kl", "max_unscored")),
    "health.max_sampling_difference",
    "data.keep.reward",
    "rewards.format",
    "rewards.correctness",
}


def mistyped(tree: Tree, turn: int) -> tuple[Tree, list[KeyPath]]:
    """The tree with every value that is no section replaced by its wrong value number `turn`."""
    paths = []
    for path, value in walk(tree):
        if value is None or (isinstance(value, dict) and path[-1] != "extra"):
            continue
        if "chat_template_kwargs" in path:  # a variable may be of several types
            continue
        wrong = wrong_values(path, value, whole=dotted(path) not in FLOATS)
        if turn < len(wrong):
            tree = changed(tree, path, lambda p, key, w=wrong[turn]: p.update({key: w}))
            paths.append(path)
    return tree, paths


@pytest.mark.parametrize("name", TREES)
def test_every_value_of_another_type(name: str, tmp_path: Path) -> None:
    """All values at once, one wrong type each a turn: each must be named, a list's wrong entry by
    its place."""
    for turn in range(9):
        tree, paths = mistyped(TREES[name], turn)
        if not paths:
            break  # no setting has that many wrong types
        with pytest.raises(ConfigError) as caught:
            load(tree, CLASSES[name], tmp_path)
        lines = str(caught.value).removeprefix(f"{tmp_path / 'changed.yaml'}: ").splitlines()
        named = {re.sub(r"\.\d+(\.\w+)*$", "", line.strip().partition(": ")[0]) for line in lines}
        assert named == {dotted(path) for path in paths}
    assert turn > 2


@pytest.mark.parametrize("name", TREES)
def test_a_section_of_another_type(name: str, tmp_path: Path) -> None:
    values = dict(walk(TREES[name]))
    for path in KEYS[name]:
        if not isinstance(values[path], dict):
            continue
        for wrong in (TEXT, NUMBER, FRACTION, True, LIST, None):

            def mistype(parent: Tree, key: str, wrong: Any = wrong) -> None:
                parent[key] = wrong

            if wrong is None and dotted(path) in NULLABLE and not name.startswith("grpo"):
                continue
            with pytest.raises(
                ConfigError, match=rf"\b{re.escape(dotted(path))}: should be a section, got"
            ):
                load(changed(TREES[name], path, mistype), CLASSES[name], tmp_path)


@pytest.mark.parametrize("name", sorted(NULLABLE))
def test_null_where_it_means_something(name: str, tmp_path: Path) -> None:
    path = tuple(name.split("."))
    trees = [tree for tree in RESOLVED if path in dict(walk(TREES[tree]))]
    if name == "data.eval":  # problems always have data of their own to be scored on
        trees.remove("grpo_demo resolved")
    assert trees
    for tree_name in trees:
        tree = changed(TREES[tree_name], path, lambda parent, key: parent.update({key: None}))
        load(tree, CLASSES[tree_name], tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.max_seq_length=8", "model.max_seq_length: should be 16 or more, got 8"),
        ("model.dtype=float8", "model.dtype: should be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("model.min_gpu_memory_gb=-1", "model.min_gpu_memory_gb: "),
        ("lora.r=0", "lora.r: should be 1 or more, got 0"),
        ("lora.dropout=1", "lora.dropout: should be below 1, got 1"),
        ("lora.target_modules=[]", "lora.target_modules: should have 1 or more entries"),
        ("data.overlong=cut", "data.overlong: should be 'error' or 'drop'"),
        ("data.train.limit=0", "data.train.limit: "),
        ("training.max_steps=-2", "training.max_steps: "),
        ("training.num_train_epochs=0", "training.num_train_epochs: "),
        ("training.learning_rate=0", "training.learning_rate: should be above 0"),
        ("training.learning_rate=-1e-5", "training.learning_rate: should be above 0"),
        ("training.learning_rate=.nan", "training.learning_rate: should be a finite number"),
        ("training.learning_rate=.inf", "training.learning_rate: "),
        ("training.learning_rate=1e400", "training.learning_rate: "),
        ("training.max_grad_norm=.inf", "training.max_grad_norm: "),
        ("training.save_total_limit=0", "training.save_total_limit: "),
        ("training.seed=-1", "training.seed: "),
        ("training.num_generations=1", "training.num_generations: "),
        ("training.top_p=1.1", "training.top_p: "),
        ("training.temperature=0", "training.temperature: "),
        ("training.scale_rewards=sometimes", "training.scale_rewards: should be 'group', "),
        ("training.num_generations=7", "training: .* 128 is not a multiple of num_generations = 7"),
        ("training.steps_per_generation=3", "training: save_steps x gradient_accumulation_steps "),
        ("training.max_completion_length=256", "leaves no room for a prompt in "),
        ("rewards={}", "rewards: "),
        ("rewards={format: 0, correctness: 0.0}", "rewards: every weight is 0"),
        ("training.loss_type=luspo", "set training.extra.importance_sampling_level to sequence"),
        ("rewards.format=.nan", "rewards.format: "),
        ("rewards.format=.inf", "rewards.format: "),
        ("evaluation.temperature=-0.1", "evaluation.temperature: "),
        ("tracking.samples=-1", "tracking.samples: "),
        ("prompt.chat_template_kwargs=[a]", "prompt.chat_template_kwargs: should be a section, "),
        ("prompt.chat_template_kwargs={a-b: 1}", "kwargs: 'a-b' is not the name of a variable: "),
        ("prompt.chat_template_kwargs={a: [1]}", "a should be true, false, .* got the list .1."),
        ("prompt.chat_template_kwargs={a: null}", "a should be true, false, .* got null"),
        ("prompt.chat_template_kwargs={a: .nan}", "a should be true, false, a number or text, got"),
        ("prompt.chat_template_kwargs={tokenize: true}", "tokenize is for the scripts to set, "),
        ("prompt.chat_template_kwargs={strftime_now: a}", "strftime_now is for the scripts to set"),
        ("run.name=a/b", "run.name: should be letters, digits, .* got the text .a/b."),
        ("run.name=../up", "run.name: "),
        ("run.name=''", "run.name: "),
        ("run.threads=0", "run.threads: "),
    ],
)
def test_a_value_out_of_range(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(GRPOSettings, ROOT / "configs" / "grpo_demo.yaml", [override])


def test_luspo_with_the_ratios_of_sequences() -> None:
    settings = load_settings(
        GRPOSettings,
        ROOT / "configs" / "grpo_demo.yaml",
        ["training.loss_type=luspo", "training.extra.importance_sampling_level=sequence"],
    )
    assert settings.training.loss_type == "luspo"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.bf16=true", "training.fp16=true"], "training: bf16 and fp16 are both true"),
        (["training.loss_weights=[1, 2, 3]"], "training: loss_weights has 3 entries for 2 losses"),
        (["training.loss_type=[]"], "training.loss_type: "),
        (["training.loss_type=[exo_pair]"], "training: loss_type exo_pair needs label_smoothing"),
        (["training.ld_alpha=1.1"], "training.ld_alpha: "),
        (["training.train_sampling_strategy=length"], "training.train_sampling_strategy: "),
        (["lora.init=loftq"], "lora.init: should be 'default', 'gaussian', 'pissa' or 'olora'"),
        (["lora.init=pissa", "model.load_in_4bit=true"], "lora.init = pissa takes weights that"),
        (["lora.init=olora", "model.load_in_4bit=true"], "lora.init = olora takes weights that"),
        (["lora.init=pissa", "lora.use_dora=true"], "goes with neither lora.use_dora nor"),
        (["lora.init=pissa", "lora.dropout=0.1"], "goes with neither lora.use_dora nor"),
        (["training.label_smoothing=0.5"], "training.label_smoothing: "),
        (["training.beta=0"], "training.beta: should be above 0"),
        (["data.holdout=0"], "data.holdout: "),
        (["evaluation.replies=-1"], "evaluation.replies: "),
    ],
)
def test_pair_settings_that_cannot_work(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(DPOSettings, ROOT / "configs" / "dpo_demo.yaml", overrides)


@pytest.mark.parametrize(
    ("config_name", "override"),
    [
        *((f"{trainer}_demo", "training.lr_scheduler_type=cosin") for trainer in ("dpo", "grpo")),
        *((f"{trainer}_demo", "training.optim=adamw_torchh") for trainer in ("dpo", "grpo")),
        ("dpo_demo", "training.loss_type=[sigmod]"),
        ("grpo_demo", "training.loss_type=dappo"),
    ],
)
def test_a_name_that_the_trainer_does_not_know(config_name: str, override: str) -> None:
    """Else it is only found when the model is loaded and scored, or at the first step."""
    path = ROOT / "configs" / f"{config_name}.yaml"
    with pytest.raises(ConfigError, match=re.escape(override.partition("=")[0])):
        parse_command_line(
            settings_class(path), config_class(path), "", ["--config", str(path), override]
        )


# --- duplicated ---------------------------------------------------------------------------------


def duplicates(text: str) -> Iterator[tuple[str, str]]:
    """(dotted path, the YAML text with that key given twice), for every key at any depth."""

    def visit(node: yaml.Node, above: KeyPath) -> Iterator[tuple[str, str]]:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            at = key.start_mark.index
            again = f"{key.value}: 0"
            separator = ", " if node.flow_style else "\n" + " " * key.start_mark.column
            yield dotted((*above, key.value)), text[:at] + again + separator + text[at:]
            yield from visit(value, (*above, key.value))

    root = yaml.compose(text)
    assert root is not None
    yield from visit(root, ())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_duplicated(path: Path, tmp_path: Path) -> None:
    found = list(duplicates(path.read_text("utf-8")))
    written = [dotted(key) for key, _ in walk(TREES[path.stem])]
    assert [where for where, _ in found] == written
    copy = tmp_path / path.name
    for where, text in found:
        copy.write_text(text, encoding="utf-8")
        key = where.rpartition(".")[2]
        with pytest.raises(ConfigError, match=rf"line \d+: the key '{key}' is given twice \(first"):
            load_settings(settings_class(path), copy)


# --- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.learning_rate=5e-6", 5e-6),
        ("training.learning_rate=1", 1),
        ("training.max_steps=0", 0),
        ("training.max_steps=-1", -1),
        ("training.extra.adam_beta1=0.8", 0.8),
        ("lora.use_rslora=true", True),
        ("lora.target_modules=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("data.train.limit=10", 10),
        ("data.train.limit=null", None),
        ("data.train.limit=", None),
        ("data.eval.path=some/file.jsonl", "some/file.jsonl"),
        ("prompt.system=Réponds : a=b", None),  # a colon and a space are YAML's, and need quotes
        ("prompt.system='Réponds : a=b'", "Réponds : a=b"),
        ("prompt.system=a=b", "a=b"),
        ("prompt.chat_template_kwargs.enable_thinking=false", False),
        ("prompt.chat_template_kwargs={a: 1.5, b: '2', c_3: 2}", {"a": 1.5, "b": "2", "c_3": 2}),
        ("prompt.system='5'", "5"),
        ("run.name=mine", "mine"),
    ],
)
def test_an_override(override: str, value: Any) -> None:
    path = ROOT / "configs" / "dpo_demo.yaml"
    if override == "prompt.system=Réponds : a=b":
        with pytest.raises(ConfigError, match=r"prompt\.system: should be text, got the object"):
            load_settings(DPOSettings, path, [override])
        return
    found: Any = load_settings(DPOSettings, path, [override])
    for name in override.partition("=")[0].split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value
    assert type(found) is type(value) or isinstance(found, float)


def test_overrides_apply_in_order_and_leave_the_rest_alone() -> None:
    path = ROOT / "configs" / "grpo_demo.yaml"
    plain = load_settings(GRPOSettings, path).model_dump()
    settings = load_settings(GRPOSettings, path, ["lora.r=4", "lora.alpha=9", "lora.r=8"])
    assert settings.model_dump() == {**plain, "lora": {**plain["lora"], "r": 8, "alpha": 9}}


def test_a_whole_section_as_override() -> None:
    settings = load_settings(
        DPOSettings, ROOT / "configs" / "dpo_demo.yaml", ["data.eval={path: held.csv, limit: 3}"]
    )
    assert settings.data.eval is not None
    assert (settings.data.eval.path, settings.data.eval.limit) == ("held.csv", 3)


def test_a_setting_of_an_earlier_version(tmp_path: Path) -> None:
    """Off, as in the record of an earlier run, it is left out; on, it is refused in a line."""
    tree = json.loads(json.dumps(TREES["grpo_demo"]))
    tree["model"]["decode_graphs"] = False
    assert load(tree, GRPOSettings, tmp_path) == load(TREES["grpo_demo"], GRPOSettings, tmp_path)
    for path in FORMER:
        with pytest.raises(ConfigError) as caught:
            load_settings(GRPOSettings, ROOT / "configs" / "grpo_demo.yaml", [f"{path}=true"])
        assert str(caught.value) == f"command line: {path}: this setting was removed; delete it"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate", "'training.learning_rate' is not of the form section.key=value"),
        ("=5", "'=5' is not of the form"),
        ("training.=5", "'training.=5' is not of the form"),
        (".training=5", "'.training=5' is not of the form"),
        ("training..seed=5", "'training..seed=5' is not of the form"),
        ("model.name.x=5", "'model.name.x=5': 'name' is not a section"),
        ("training.beta.x.y=5", "'training.beta.x.y=5': 'beta' is not a section"),
        ("training.lerning_rate=5", "training.lerning_rate: unknown setting. Did you mean 'lear"),
        ("trainig.seed=5", "trainig: unknown setting. Did you mean 'training'?"),
        ("data.train.pth=x", "data.train.pth: unknown setting. Did you mean 'path'?"),
        ("training.seed=five", "training.seed: should be a whole number, got the text 'five'"),
        ("training.seed=1.0", "training.seed: should be a whole number, got 1.0"),
        ("training.seed=true", "training.seed: should be a whole number, got true"),
        ("training.loss_type=[a", "override training.loss_type: line 1: not valid YAML"),
        ("lora={r: 1, r: 2}", "override lora: line 1: the key 'r' is given twice"),
        ("training.seed=", "training.seed: should be a whole number, got null"),
    ],
)
def test_an_override_that_cannot_be_applied(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_settings(DPOSettings, ROOT / "configs" / "dpo_demo.yaml", [override])


def test_an_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    """Nor the file's own mistake on an override."""
    mine = tmp_path / "mine.yaml"
    text = (ROOT / "configs" / "grpo_demo.yaml").read_text("utf-8")
    mine.write_text(text.replace("num_generations:", "num_generation:"), "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(GRPOSettings, mine, ["training.max_step=4"])
    assert str(caught.value).split("\n") == [
        f"{mine}: training.num_generation: unknown setting. Did you mean 'num_generations'?",
        "       command line: training.max_step: unknown setting. Did you mean 'max_steps'?",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_of_the_other_script_is_named_as_that(path: Path) -> None:
    script = path.stem.partition("_")[0]
    for other in {*SETTINGS.values()} - {settings_class(path)}:
        with pytest.raises(ConfigError) as caught:
            load_settings(other, path, ["lora.r=4"])
        assert str(caught.value) == f"{path}: this looks like a config of ./run {script}"


def test_nothing_is_guessed_where_nothing_is_near() -> None:
    path = ROOT / "configs" / "grpo_demo.yaml"
    with pytest.raises(ConfigError) as caught:
        load_settings(GRPOSettings, path, ["training.train_sampling_strategy=random"])
    assert "Did you mean" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"There are configs/dpo_demo.yaml, ") as caught:
        load_settings(GRPOSettings, Path("configs/nope.yaml"))
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "x.yaml", "--max_steps", "4"], "given as training.max_steps=4\n"),
        (["--config", "x.yaml", "--max-steps=4"], "given as training.max_steps=4\n"),
        (["--config", "x.yaml", "--nothing"], "given as section.key=value, and --help all lists"),
        (["configs/dpo_demo.yaml"], "write it as --config configs/dpo_demo.yaml\n"),
    ],
)
def test_what_argparse_refuses_says_what_to_write(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_command_line(DPOSettings, CONFIG_CLASSES[DPOSettings], "", words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_dry_run_ends_with_the_command_that_trains() -> None:
    words = ["--config", "configs/dpo_demo.yaml", "--dry-run", "prompt.system=a b"]
    command = parse_command_line(DPOSettings, CONFIG_CLASSES[DPOSettings], "", words)
    again = "./run dpo --config configs/dpo_demo.yaml 'prompt.system=a b'"
    assert command.verdict().endswith(f"nothing was trained. To train: {again}")


def test_a_dry_run_elsewhere_names_a_command_that_works_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--config", "configs/dpo_demo.yaml", "--dry-run"]
    command = parse_command_line(DPOSettings, CONFIG_CLASSES[DPOSettings], "", words)
    assert command.command == f"{ROOT / 'run'} dpo --config configs/dpo_demo.yaml"


# --- training.extra -----------------------------------------------------------------------------


def load_with(path: Path, *overrides: str) -> None:
    parse_command_line(
        settings_class(path), config_class(path), "", ["--config", str(path), *overrides]
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_extra_takes_the_trainers_other_arguments(path: Path) -> None:
    load_with(path, "training.extra.adam_beta1=0.8", "training.extra.dataloader_drop_last=true")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_extra_is_checked_against_the_trainer(path: Path) -> None:
    name = config_class(path).partition(":")[2]
    with pytest.raises(ConfigError) as caught:
        load_with(path, "training.extra.adam_bta1=0.8")
    assert str(caught.value) == (
        f"training.extra.adam_bta1: {name} has no such argument. Did you mean 'adam_beta1'?"
    )


def test_extra_knows_one_trainers_arguments_from_the_others() -> None:
    only_dpo = "training.extra.sync_ref_model_x=1", "training.extra.f_divergence_type=js_divergence"
    load_with(ROOT / "configs" / "dpo_demo.yaml", only_dpo[1])
    with pytest.raises(ConfigError, match=r"training\.extra\.f_divergence_type: GRPOConfig has no"):
        load_with(ROOT / "configs" / "grpo_demo.yaml", only_dpo[1])


@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.stem)
def test_extra_refuses_what_has_a_setting_of_its_own(path: Path) -> None:
    spelled_out = load_settings(settings_class(path), path).model_dump()["training"]
    for key in spelled_out.keys() - {"extra"}:
        with pytest.raises(ConfigError) as caught:
            check_extra({**spelled_out, "extra": {key: 1}}, config_class(path))
        assert str(caught.value) == f"training.extra.{key}: write it as training.{key}"


@pytest.mark.parametrize("key", sorted(OWNED.keys() - {"hub_token"}))  # a secret, refused before
def test_extra_refuses_what_the_scripts_set_and_says_where_instead(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_with(ROOT / "configs" / "dpo_demo.yaml", f"training.extra.{key}=x")
    said = f"training.extra.{key}: the scripts set it; use {OWNED[key]}"
    assert str(caught.value) == said


@pytest.mark.parametrize("key", sorted(owned_arguments(RunFolder(Path()), "n", [])))
def test_no_argument_that_the_scripts_set_can_be_asked_for_in_vain(key: str) -> None:
    """build_arguments lets the scripts' own values win; a user's must not vanish silently."""
    with pytest.raises(ConfigError, match=rf"training\.extra\.{key}: "):
        load_with(ROOT / "configs" / "grpo_demo.yaml", f"training.extra.{key}=x")


@pytest.mark.parametrize(
    "override",
    [
        "adam_beta1=many",
        "adam_beta1=[1]",
        "adam_beta1=true",
        "dataloader_num_workers=1.5",
        "dataloader_num_workers=two",
        "disable_dropout=5",
        "disable_dropout='true'",
        "hub_model_id=5",
    ],
)
def test_extra_refuses_a_value_of_another_type(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"training\.extra\.{key}: "):
        load_with(ROOT / "configs" / "dpo_demo.yaml", f"training.extra.{override}")


FIELDS = {cls: config_fields(name) for cls, name in CONFIG_CLASSES.items()}
DPO, GRPO = DPOSettings, GRPOSettings


def refusal(cls: type[Section], *overrides: str) -> str:
    """What the command line says of a demo config with overrides; it has to refuse them."""
    name = next(name for name, other in SETTINGS.items() if other is cls)
    path = ROOT / "configs" / f"{name}_demo.yaml"
    with pytest.raises(ConfigError) as caught:
        load_with(path, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("cls", [DPO, GRPO])
@pytest.mark.parametrize("key", sorted(REMOVED))
def test_what_an_earlier_trl_took_is_never_taken_for_another_argument(
    cls: type[Section], key: str
) -> None:
    if cls is GRPO and key == "max_completion_length":
        return  # a setting of GRPO
    message = refusal(cls, f"training.extra.{key}=1")
    assert (
        message == f"training.extra.{key}: trl and transformers no longer take it; {REMOVED[key]}"
    )


def test_a_name_that_is_far_from_all_arguments_suggests_none() -> None:
    assert "Did you mean" not in refusal(GRPO, "training.extra.max_tokens=5")


def test_the_tables_of_extra_name_arguments_of_the_installed_libraries() -> None:
    known = set().union(*FIELDS.values())
    for table in (OWNED, UNSUPPORTED, CHOICES, NESTED):
        assert {key.rpartition(".")[2] for key in table} <= known
    deprecated = {"use_transformers_paged", "vllm_importance_sampling_cap"}
    assert REMOVED.keys() & FIELDS[DPO].keys() == set()
    assert REMOVED.keys() & FIELDS[GRPO].keys() == {"max_completion_length", *deprecated}


@pytest.mark.parametrize(
    ("cls", "overrides", "expected"),
    [
        (DPO, ["extra.eval_strategy=steps"], "use evaluation.every"),
        (DPO, ["extra.push_to_hub=true"], "--push"),
        (DPO, ["extra.load_best_model_at_end=true"], "use run.keep"),
        (DPO, ["extra.deepspeed=ds.json"], "not split over devices"),
        (DPO, ["extra.save_only_model=true"], "use training.save_steps"),
        (DPO, ["extra.ignore_data_skip=true"], "use --resume"),
        (GRPO, ["extra.generation_batch_size=48"], "use training.steps_per_generation"),
        (GRPO, ["extra.sync_ref_model=true"], "the policy as loaded"),
        (GRPO, ["extra.remove_unused_columns=true"], "the rewards read"),
        (GRPO, ["lr_scheduler_type=reduce_lr_on_plateau"], "use another schedule"),
        (GRPO, ["extra.importance_sampling_level=tokens"], "Did you mean 'token'?"),
        (DPO, ["extra.truncation_mode=left"], "Valid: keep_end, keep_start"),
        (DPO, ["extra.f_divergence_type=js"], "js_divergence"),
        (
            DPO,
            ["extra.f_divergence_type=js_divergence", "loss_type=[apo_zero]"],
            "apo_zero takes none but reverse_kl",
        ),
        (DPO, ["extra.use_weighting=true", "loss_type=[aot]"], "use another training.loss_type"),
        (DPO, ["extra.use_weighting=true"], "aot_unpaired and sft"),
        (GRPO, ["extra.generation_kwargs={max_new_tokens: 9}"], "training.max_completion_length"),
        (GRPO, ["extra.accelerator_config={split_batches: true}"], "per_device_train_batch_size"),
        (DPO, ["extra.debug=5"], "expected text | list of text, got 5"),
        (DPO, ["label_smoothing=0.1"], "changes nothing with loss_type sigmoid, sft; set it to 0"),
    ],
)
def test_what_a_trainer_would_refuse_later_is_refused_at_once(
    cls: type[Section], overrides: list[str], expected: str
) -> None:
    message = refusal(cls, *(f"training.{override}" for override in overrides))
    assert f"training.{overrides[0].partition('=')[0]}" in message.replace(": ", ".", 2)
    assert expected in message


@pytest.mark.parametrize("loss", ["robust", "exo_pair", "aot", "aot_unpaired", "sigmoid, robust"])
def test_label_smoothing_goes_with_the_losses_that_use_it(loss: str) -> None:
    changes = [f"training.loss_type=[{loss}]", "training.label_smoothing=0.1"]
    load_with(ROOT / "configs" / "dpo_demo.yaml", *changes)


# --- files and folders --------------------------------------------------------------------------


def test_a_relative_config_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(GRPOSettings, Path("configs/grpo_demo.yaml"))
    assert settings.run.name == "grpo_demo"


def test_a_config_of_the_working_folder_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    text = (ROOT / "configs" / "grpo_demo.yaml").read_text("utf-8")
    mine = text.replace("name: grpo_demo", "name: mine")
    (tmp_path / "configs" / "grpo_demo.yaml").write_text(mine, encoding="utf-8")
    assert load_settings(GRPOSettings, Path("configs/grpo_demo.yaml")).run.name == "mine"


@pytest.mark.parametrize("asked", ["configs/grpo_dem.yaml", "grpo_demo.yaml", "grpo_demo"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_missing_config_names_the_projects_own(
    asked: str, elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path if elsewhere else ROOT)
    with pytest.raises(ConfigError, match=f"'{asked}'") as caught:
        load_settings(GRPOSettings, Path(asked))
    assert "configs/grpo_demo.yaml" in str(caught.value)


def test_the_output_folder() -> None:
    path = ROOT / "configs" / "dpo_demo.yaml"

    def output(*arguments: str) -> Path:
        command = ["--config", str(path), *arguments]
        return parse_command_line(DPOSettings, CONFIG_CLASSES[DPOSettings], "", command).output

    assert output() == ROOT / "outputs" / "dpo_demo"
    assert output("run.name=mine") == ROOT / "outputs" / "mine"
    assert output("--output", "some/folder") == Path.cwd() / "some" / "folder"
    assert output("--output", "/some/folder") == Path("/some/folder")


def test_options_and_overrides_in_any_order() -> None:
    path = str(ROOT / "configs" / "dpo_demo.yaml")
    command = parse_command_line(
        DPOSettings,
        CONFIG_CLASSES[DPOSettings],
        "",
        [
            "lora.r=3",
            "--dry-run",
            "--config",
            path,
            "lora.alpha=5",
            "--resume",
            "never",
            "run.name=x",
        ],
    )
    lora = command.settings.lora
    assert (lora.r, lora.alpha, command.settings.run.name) == (3, 5, "x")
    assert (command.resume, command.dry_run) == ("never", True)
    plain = parse_command_line(DPOSettings, CONFIG_CLASSES[DPOSettings], "", ["--config", path])
    assert (plain.resume, plain.dry_run) == ("auto", False)


# --- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DPOSettings, GRPOSettings])
def test_help_lists_every_setting_with_a_meaning(cls: type[Section]) -> None:
    lines = [line.strip() for entry in describe(cls).values() for line in entry.splitlines()]
    heads = dict(zip(lines[::2], lines[1::2], strict=True))
    listed = [head.partition(":")[0] for head in heads]
    name = "dpo_demo" if cls is DPOSettings else "grpo_demo"
    tree = TREES[f"{name} resolved"]
    leaves = [dotted(p) for p, v in walk(tree) if not isinstance(v, dict) and p[0] != "rewards"]
    for leaf in {*leaves, "training.extra"} - {"data.eval"}:
        assert leaf in listed
    assert ("rewards" in listed) is (cls is GRPOSettings)
    assert len(set(listed)) == len(listed)
    for head, meaning in heads.items():
        assert re.fullmatch(r"[\w.]+: .+ (\(required\)|= .+)", head), head
        assert len(meaning) > 10, head
    assert "training.learning_rate: number (required)" in heads
    assert "lora.r: integer = 16" in heads


def test_help_says_that_held_out_pairs_of_their_own_are_optional() -> None:
    """`data.eval.path` is only required where `data.eval` is given."""
    entry = describe(DPOSettings)["data.eval"]
    assert "= null" in entry
    assert "Held-out pairs of their own" in entry


@pytest.mark.parametrize("cls", [DPOSettings, GRPOSettings])
def test_help_shows_first_what_people_change(cls: type[Section]) -> None:
    first = [
        line for line in listed(cls, "").splitlines() if line.startswith("  ") and line[2] != " "
    ]
    names = {line.strip().partition(":")[0] for line in first}
    assert 18 <= len(first) <= 25 and names <= set(OFTEN)
    assert set(OFTEN) <= {*describe(DPOSettings), *describe(GRPOSettings)}
    assert {"training.learning_rate", "run.name"} <= names


def test_help_of_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    for words, found in (["all"], "run.threads"), (["patience"], "run.patience"):
        with pytest.raises(SystemExit) as left:
            parse_command_line(GRPOSettings, "", "A story.", ["--help", *words])
        said = capsys.readouterr().out
        assert left.value.code == 0 and f"  {found}: " in said and "A story." not in said
    assert "run.threads" not in said
    with pytest.raises(SystemExit) as left:
        parse_command_line(GRPOSettings, "", "", ["--help", "nothng"])
    assert left.value.code == 2
    assert "no setting has 'nothng' in its name; --help all" in capsys.readouterr().err


# --- the scripts themselves ---------------------------------------------------------------------


def request_for(name: str, kind: str, folder: Path) -> tuple[list[str], list[str]]:
    """The arguments of a request that cannot be met, and what must be said about it."""
    path = ROOT / "configs" / f"{name}_demo.yaml"
    text = path.read_text("utf-8")
    mine = folder / "mine.yaml"
    if kind == "misspelt key":
        mine.write_text(text.replace("learning_rate:", "lerning_rate:"), "utf-8")
        said = [str(mine), "training.lerning_rate", "Did you mean 'learning_rate'?"]
    elif kind == "wrong type":
        mine.write_text(re.sub("learning_rate: .*", "learning_rate: fast", text), "utf-8")
        said = [str(mine), "training.learning_rate", "number", "'fast'"]
    elif kind == "duplicate key":
        mine.write_text(text + "lora:\n  r: 4\n", "utf-8")
        line = len(text.splitlines()) + 1
        said = [str(mine), f"line {line}", "'lora' is given twice"]
    elif kind == "missing file":
        wrong = f"configs/{name}_dem.yaml"
        return ["--config", wrong], [f"'{wrong}'", f"configs/{name}_demo.yaml"]
    elif kind == "misspelt override":
        return ["--config", str(path), "lora.rr=4"], ["lora.rr", "Did you mean 'r'?"]
    elif kind == "unknown extra":
        arguments = ["--config", str(path), "training.extra.adam_bet1=1"]
        return arguments, ["training.extra.adam_bet1", "Did you mean 'adam_beta1'?"]
    elif kind == "no config":
        return [], ["--config", "usage:"]
    else:
        assert kind == "no checkpoint"
        arguments = ["--config", str(path), "--resume", str(folder), "--output", str(folder / "o")]
        return arguments, [f"--resume {folder}", "not a complete checkpoint"]
    return ["--config", str(mine)], said


@pytest.mark.parametrize("script", ["dpo", "grpo"])
def test_help_needs_no_heavy_imports(script: str, ask: Ask) -> None:
    result = ask(script, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "training.learning_rate: number (required)" in result.stdout


@pytest.mark.parametrize("script", ["dpo", "grpo"])
@pytest.mark.parametrize(
    "kind",
    [
        "misspelt key",
        "wrong type",
        "duplicate key",
        "missing file",
        "misspelt override",
        "unknown extra",
        "no config",
        "no checkpoint",
    ],
)
def test_a_wrong_request_is_refused_before_heavy_imports(
    script: str, kind: str, ask: Ask, tmp_path: Path
) -> None:
    arguments, said = request_for(script, kind, tmp_path)
    result = ask(script, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    for part in said:
        assert part in result.stderr
    assert "Traceback" not in result.stderr


def test_the_bait_catches(bait: Path) -> None:
    """What the two tests above rely on."""
    result = subprocess.run([sys.executable, "-c", "import torch"], env={"PYTHONPATH": str(bait)})
    assert result.returncode == 99


def test_names_that_are_no_variables_of_a_template() -> None:
    """All arguments of apply_chat_template, and what it gives each template besides."""
    from inspect import signature

    from transformers import PreTrainedTokenizerBase

    names = set(signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    assert names - {"self", "kwargs"} | {"messages", "strftime_now"} == TAKEN
