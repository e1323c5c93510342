"""Settings: misspelt, mistyped and out of range; overrides; training.extra; the command line."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from eval.gsm8k import Problem
from posttrain.base.errors import ConfigError
from posttrain.run.folder import RunFolder
from posttrain.settings import DPOSettings, GRPOSettings, SFTSettings, Source
from posttrain.settings.command import SETTINGS, load_settings, parse_command_line
from posttrain.settings.extra import (
    CHOICES,
    NESTED,
    OWNED,
    REMOVED,
    UNSUPPORTED,
    check_extra,
    config_fields,
)
from posttrain.settings.help import OFTEN, describe, listed
from posttrain.settings.model import TAKEN
from posttrain.settings.section import FORMER, Section
from posttrain.settings.strict_yaml import read_yaml
from posttrain.train.arguments import owned_arguments
from rewards import resolve
from scripts.grpo import load_rewards, print_example
from tests.helpers import ROOT, Capsys, demo_settings, settings_class
from tests.unit.conftest import Ask, write_file

Tree = dict[str, Any]
KeyPath = tuple[str, ...]

DPO, GRPO, SFT = DPOSettings, GRPOSettings, SFTSettings
CONFIG_CLASSES = {
    DPO: "trl/trainer/dpo_config.py:DPOConfig",
    GRPO: "trl/trainer/grpo_config.py:GRPOConfig",
    SFT: "trl/trainer/sft_config.py:SFTConfig",
}
DEMOS = {cls: ROOT / "configs" / f"{name}_demo.yaml" for name, cls in SETTINGS.items()}


def walk(tree: Tree, above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key of a tree, sections included, with its value; none inside of `rewards` and
    `prompt.chat_template_kwargs`, which hold names of functions and of a template's variables."""
    for key, value in tree.items():
        yield (*above, key), value
        if isinstance(value, dict) and key not in ("rewards", "chat_template_kwargs"):
            yield from walk(value, (*above, key))


def parent_of(tree: Tree, path: KeyPath) -> Tree:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def load(tree: Tree, cls: Any, folder: Path) -> Any:
    path = folder / "changed.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return load_settings(cls, path)


def refused(tree: Tree, cls: Any, folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tree, cls, folder)
    return [line.partition("changed.yaml: ")[2] for line in str(caught.value).splitlines()]


TREES = {cls: read_yaml(path) for cls, path in DEMOS.items()}
# With every default, as a run folder keeps them: all settings there are.
RESOLVED = {
    cls: load_settings(settings_class(path), path).model_dump(mode="json")
    for cls, path in DEMOS.items()
}


def misspellings(word: str) -> list[str]:
    """The word with its last letter doubled, and swapped with the one before it."""
    wrong = [word + word[-1], word[:-2] + word[-1] + word[-2:-1]]
    return [each for each in dict.fromkeys(wrong) if each != word]


@pytest.mark.parametrize("cls", SETTINGS.values())
def test_every_key_misspelt(cls: type[Section], tmp_path: Path) -> None:
    """All at once, beside the right keys: each wrong one must be named."""
    tree, expected = deepcopy(RESOLVED[cls]), []
    for path, _ in walk(RESOLVED[cls]):
        for wrong in misspellings(path[-1]):
            parent_of(tree, path)[wrong] = 1
            name = ".".join((*path[:-1], wrong))
            expected.append(f"{name}: unknown setting. Did you mean '{path[-1]}'?")
    assert sorted(refused(tree, cls, tmp_path)) == sorted(expected)
    assert len(expected) > 200


class Template:
    """As much of a tokenizer as a prompt needs."""

    def apply_chat_template(self, turns: list[dict[str, str]], **_: Any) -> str:
        return "\n".join(turn["content"] for turn in turns)


REWARD = """
def level(completions, question, answer, level, **columns):
    assert question == ["1 + 1?"] * 3 and answer == ["2"] * 3 and level == [0] * 3
    return [float(turns[-1]["content"].count(answer[0]) > level[0]) for turns in completions]

def picky(completions, **columns):
    return [{"": 0.0, "It is 2.": None}.get(turns[-1]["content"], "much") for turns in completions]
"""


def test_a_dry_run_calls_rewards_as_training_does(tmp_path: Path, capsys: Capsys) -> None:
    """With message lists and every column of the row; one that fails is named."""
    (tmp_path / "mine.py").write_text(REWARD, encoding="utf-8")
    level, picky = (f"{tmp_path / 'mine.py'}:{name}" for name in ("level", "picky"))
    problem = Problem("1 + 1?", "2", columns={"level": 0})

    def with_rewards(**weights: float) -> Any:
        return load({**TREES[GRPO], "rewards": weights}, GRPO, tmp_path)

    settings = with_rewards(**{level: 0.5, "format": 1.0})
    print_example(problem, Template(), settings, load_rewards(settings, problem))
    output = capsys.readouterr().out
    assert f"completion 'It is 2.' earns 0.5 x {level} 1 + format 0 = 0.5" in output
    with pytest.raises(ConfigError, match=r"^rewards: .*picky' returned 'much'"):
        print_example(problem, Template(), with_rewards(**{picky: 1}), {picky: resolve(picky)})
    with pytest.raises(ConfigError, match=r"^rewards\b.*'formatt'.*did you mean 'format'"):
        load_rewards(with_rewards(formatt=1.0), problem)


def wrong_values(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return ["true", 1, ["a"]]
    if isinstance(value, str):
        return [7, True, {"a": 1}]
    if isinstance(value, int | float):
        return ["5e-6", True, 1.5 if isinstance(value, int) else ["a"]]
    if isinstance(value, list):
        return ["many", {"a": 1}, [*value, 7]]
    return []  # null, or a section


@pytest.mark.parametrize("cls", SETTINGS.values())
@pytest.mark.parametrize("turn", range(3))
def test_every_value_of_another_type(cls: type[Section], turn: int, tmp_path: Path) -> None:
    """All values at once, one wrong type each: each must be named."""
    tree, expected = deepcopy(RESOLVED[cls]), set()
    for path, value in walk(RESOLVED[cls]):
        if wrong := wrong_values(value):
            parent_of(tree, path)[path[-1]] = wrong[turn]
            expected.add(".".join(path))
    lines = refused(tree, cls, tmp_path)
    assert {re.sub(r"\.\d+(\.\w+)*$", "", line.partition(": ")[0]) for line in lines} == expected


@pytest.mark.parametrize("wrong", ["many", 7, ["a"], None])
def test_a_section_of_another_type(wrong: Any, tmp_path: Path) -> None:
    paths = [path for path, value in walk(RESOLVED[DPO]) if isinstance(value, dict)]
    for path in paths:
        if wrong is None and path == ("data", "eval"):
            continue
        tree = deepcopy(RESOLVED[DPO])
        parent_of(tree, path)[path[-1]] = wrong
        (line,) = refused(tree, DPO, tmp_path)
        assert line.startswith(f"{'.'.join(path)}: should be a section, got")
    others = {key: value for key, value in TREES[DPO].items() if key != "model"}
    assert "model: missing" in "".join(refused(others, DPO, tmp_path))


NEVER, UNKNOWN = "evaluation.every=null", "data={train: {path: x}, eval: {path: y}}"
SET = "name: a, path: p"
REFUSED = {
    # Overrides of a method's demo, and what the message says.
    "grpo": [
        ("model.max_seq_length=8", "model.max_seq_length: should be 16 or more, got 8"),
        ("model.dtype=float8", "model.dtype: should be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("lora.dropout=1", "lora.dropout: should be below 1, got 1"),
        ("lora.target_modules=[]", "lora.target_modules: should have 1 or more entries"),
        ("training.learning_rate=0", "training.learning_rate: should be above 0"),
        ("training.learning_rate=.nan", "training.learning_rate: should be a finite number"),
        ("rewards.format=.inf", "rewards.format: "),
        ("training.seed=5000000000", "training.seed: should be 4294967295 or less, got 5000000000"),
        ("training.num_generations=7", "training: .* 128 is not a multiple of num_generations = 7"),
        ("training.steps_per_generation=3", "training: save_steps x gradient_accumulation_steps "),
        ("training.num_iterations=7", "training: save_steps x gradient_accumulation_steps "),
        ("training.max_completion_length=256", "leaves no room for a prompt in "),
        ("rewards={format: 0, correctness: 0.0}", "rewards: every weight is 0"),
        ("training.loss_type=luspo", "set training.extra.importance_sampling_level to sequence"),
        ("prompt.chat_template_kwargs=[a]", "prompt.chat_template_kwargs: should be a section, "),
        ("prompt.chat_template_kwargs={a: [1]}", "a should be true, false, .* got the list .1."),
        ("prompt.chat_template_kwargs={a: .nan}", "a should be true, false, a number or text, got"),
        ("prompt.chat_template_kwargs={tokenize: true}", "tokenize is for the scripts to set, "),
        ("run.name=../up", "run.name: should be letters, digits, .* got the text .../up."),
        ("lora.zzzzzz=1", r"lora\.zzzzzz: unknown setting\. Valid: "),
        ("training.zzzzzz=1", r"training\.zzzzzz: unknown setting\. --help all lists"),
        (NEVER, "run.patience=2", "run.patience needs evaluation.every"),
        (
            *("training.steps_per_generation=4", "training.save_steps=20"),
            "evaluation.every = 10 falls between two generations",
        ),
        (UNKNOWN, "evaluation.every=5", "evaluation.every needs rows to validate on; set data.v"),
        (UNKNOWN, NEVER, "run.patience=2", "run.patience needs rows to validate on"),
        (UNKNOWN, NEVER, "run.keep=best", "run.keep = best needs rows to validate on"),
        ("tracking.report_to=[tensorbord]", r"tracking\.report_to\.0.*'tensorboard'"),
    ],
    "dpo": [
        ("data.format=ocra", r"data\.format: should be 'columns', 'orca', "),
        (f"evaluation.also=[{{{SET}, max_new_tokens: 256}}]", "a: max_new_tokens = 256 leaves no "),
        ("evaluation.also=[{name: a/b, path: p, max_new_tokens: 9}]", "also.*name"),
        (f"evaluation.also=[{', '.join([f'{{{SET}, max_new_tokens: 9}}'] * 2)}]", "name: a, a"),
        # Not of the form of an override.
        ("training.learning_rate", "'training.learning_rate' is not of the form section.key=value"),
        ("training..seed=5", "'training..seed=5' is not of the form"),
        ("training.beta.x.y=5", "'training.beta.x.y=5': 'beta' is not a section"),
        ("trainig.seed=5", r"trainig: unknown setting\. Did you mean 'training'\?"),
        ("prompt.system=Réponds : a=b", "prompt.system: should be text, got the object"),
        ("training.loss_type=[a", "override training.loss_type: line 1: not valid YAML"),
        ("training.seed=", "training.seed: should be a whole number, got null"),
    ],
    "sft": [
        ("data.pair_format=replies", r"data\.pair_format: should be 'columns'"),
        ("export.score=true", "data.problems=null", r"export\.score compares answers to data\."),
    ],
}


@pytest.mark.parametrize(
    ("method", "case"), [(method, case) for method in REFUSED for case in REFUSED[method]], ids=str
)
def test_settings_that_are_refused(method: str, case: tuple[str, ...]) -> None:
    *overrides, message = case
    with pytest.raises(ConfigError, match=message):
        demo_settings(method, *overrides)


def test_arguments_of_a_chat_template_that_the_scripts_set() -> None:
    """All arguments of apply_chat_template, and what it gives each template besides."""
    from transformers import PreTrainedTokenizerBase

    names = set(signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    assert names - {"self", "kwargs"} | {"messages", "strftime_now"} == TAKEN


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.eval={path: held.csv, limit: 3}", Source(path="held.csv", limit=3)),
        ("training.learning_rate=5e-6", 5e-6),
        ("training.learning_rate=1", 1),
        ("lora.target_modules=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("data.train.limit=null", None),
        ("data.train.limit=", None),
        ("prompt.system=a=b", "a=b"),
        ("prompt.chat_template_kwargs={a: 1.5, b: '2', c_3: 2}", {"a": 1.5, "b": "2", "c_3": 2}),
        ("prompt.system='5'", "5"),
    ],
)
def test_an_override(override: str, value: Any) -> None:
    result: Any = load_settings(DPO, DEMOS[DPO], [override])
    for name in override.partition("=")[0].split("."):
        result = result[name] if isinstance(result, dict) else getattr(result, name)
    assert result == value
    assert type(result) is type(value) or isinstance(result, float)


def test_overrides_apply_in_order_and_leave_the_rest_alone() -> None:
    plain = load_settings(GRPO, DEMOS[GRPO]).model_dump()
    luspo = ["training.loss_type=luspo", "training.extra.importance_sampling_level=sequence"]
    settings = load_settings(GRPO, DEMOS[GRPO], ["lora.r=4", *luspo, "lora.alpha=9", "lora.r=8"])
    training = {"loss_type": "luspo", "extra": {"importance_sampling_level": "sequence"}}
    assert settings.model_dump() == {
        **plain,
        "lora": {**plain["lora"], "r": 8, "alpha": 9},
        "training": {**plain["training"], **training},
    }


def test_a_setting_of_an_earlier_version(tmp_path: Path) -> None:
    """Off, as in the record of an earlier run, it is left out; on, it is refused in a line."""
    tree = deepcopy(TREES[GRPO])
    tree["model"]["decode_graphs"] = False
    assert load(tree, GRPO, tmp_path) == load(TREES[GRPO], GRPO, tmp_path)
    tree["model"]["decode_graphs"] = True
    with pytest.raises(ConfigError, match=r"model\.decode_graphs: this setting was removed"):
        load(tree, GRPO, tmp_path)
    for path in FORMER:
        with pytest.raises(ConfigError, match=f"command line: {path}: this setting was removed"):
            load_settings(GRPO, DEMOS[GRPO], [f"{path}=true"])


def test_an_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    """Nor the file's mistake on an override."""
    mine = tmp_path / "mine.yaml"
    text = DEMOS[GRPO].read_text("utf-8")
    mine.write_text(text.replace("num_generations:", "num_generation:"), "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(GRPO, mine, ["training.max_step=4"])
    assert str(caught.value).split("\n") == [
        f"{mine}: training.num_generation: unknown setting. Did you mean 'num_generations'?",
        "       command line: training.max_step: unknown setting. Did you mean 'max_steps'?",
    ]


def parse(cls: Any, *words: str) -> Any:
    return parse_command_line(cls, "A story.", [*words])


def test_a_config_of_another_script_is_named() -> None:
    for method, other in (("dpo", GRPO), ("grpo", SFT), ("sft", DPO)):
        with pytest.raises(ConfigError, match=rf"_demo.yaml: this is a config of \./run {method}"):
            load_settings(other, DEMOS[SETTINGS[method]], ["lora.r=4"])


def test_a_config_of_the_working_folder_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("configs/grpo_demo.yaml")
    assert load_settings(GRPO, name).run.name == "grpo_demo"  # the project's
    mine = DEMOS[GRPO].read_text("utf-8").replace("name: grpo_demo", "name: mine")
    write_file(tmp_path / name, mine)
    assert load_settings(GRPO, name).run.name == "mine"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("configs/grpo_dem.yaml", "Did you mean 'configs/grpo_demo.yaml'?"),
        ("grpo_demo", "Did you mean 'configs/grpo_demo.yaml'?"),
        ("configs/nope.yaml", "Valid: configs/dpo_demo.yaml, "),
        ("~nosuchuser/x.yaml", "Valid: configs/dpo_demo.yaml, "),
    ],
)
def test_a_missing_config(path: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"no config file at '{path}'. {hint}")):
        load_settings(GRPO, Path(path))


def test_options_and_overrides_in_any_order() -> None:
    path = str(DEMOS[DPO])
    words = "lora.r=3 --dry-run --config PATH lora.alpha=5 --resume never run.name=x"
    command = parse(DPO, *words.replace("PATH", path).split())
    lora = command.settings.lora
    assert (lora.r, lora.alpha, command.settings.run.name) == (3, 5, "x")
    assert (command.resume, command.dry_run) == ("never", True)
    assert command.output == ROOT / "outputs" / "x"
    plain = parse(DPO, "--config", path, "--output", "some/folder")
    assert (plain.resume, plain.dry_run) == ("auto", False)
    assert plain.output == Path.cwd() / "some" / "folder"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--config", "x.yaml", "--max_steps", "4"], "given as training.max_steps=VALUE, "),
        (["--config", "x.yaml", "--nothing"], "given as section.key=value, and --help all lists"),
        (["configs/dpo_demo.yaml"], "write it as --config configs/dpo_demo.yaml\n"),
    ],
)
def test_advice_on_what_argparse_refuses(words: list[str], advice: str, capsys: Capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(DPO, *words)
    assert caught.value.code == 2
    assert advice in capsys.readouterr().err


def test_a_dry_run_ends_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--config", "configs/dpo_demo.yaml", "--dry-run", "prompt.system=a b"]
    again = "dpo --config configs/dpo_demo.yaml 'prompt.system=a b'"
    assert parse(DPO, *words).verdict().endswith(f"nothing was trained. To train: ./run {again}")
    monkeypatch.chdir(tmp_path)
    assert parse(DPO, *words).command == f"{ROOT / 'run'} {again}"


def refusal(cls: Any, *overrides: str) -> str:
    """The command line's message on a demo config with overrides, which it has to refuse."""
    with pytest.raises(ConfigError) as caught:
        parse(cls, "--config", str(DEMOS[cls]), *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("cls", SETTINGS.values())
def test_extra_is_checked_against_the_trainer(cls: type[Section]) -> None:
    right = "training.extra.adam_beta1=0.8", "training.extra.dataloader_drop_last=true"
    parse(cls, "--config", str(DEMOS[cls]), *right)
    name = CONFIG_CLASSES[cls].partition(":")[2]
    assert refusal(cls, "training.extra.adam_bta1=0.8") == (
        f"training.extra.adam_bta1: {name} has no such argument. Did you mean 'adam_beta1'?"
    )
    only_dpo = "training.extra.f_divergence_type=js_divergence"
    if cls is DPO:
        parse(cls, "--config", str(DEMOS[cls]), only_dpo)
    else:
        assert f"f_divergence_type: {name} has no" in refusal(cls, only_dpo)


@pytest.mark.parametrize("cls", SETTINGS.values())
def test_extra_refuses_what_is_a_setting(cls: type[Section]) -> None:
    training = RESOLVED[cls]["training"]
    assert not training.keys() & OWNED.keys()  # which are looked for first
    with pytest.raises(ConfigError, match=r"^training\.extra\.seed: write it as training\.seed$"):
        check_extra({**training, "extra": {"seed": 1}}, CONFIG_CLASSES[cls])


def test_every_argument_that_the_scripts_set_is_refused() -> None:
    """In build_arguments a user's value would replace it."""
    assert owned_arguments(RunFolder(Path()), "n", []).keys() <= OWNED.keys()


def test_the_tables_of_extra_name_arguments_of_the_installed_libraries() -> None:
    known = set().union(*map(config_fields, CONFIG_CLASSES.values()))
    for table in (OWNED, UNSUPPORTED, CHOICES, NESTED):
        assert {key.rpartition(".")[2] for key in table} <= known
    assert REMOVED.keys() & known == {"max_completion_length", "vllm_importance_sampling_cap"}


@pytest.mark.parametrize(
    ("cls", "overrides", "expected"),
    [
        (DPO, ["extra.eval_strategy=steps"], "use evaluation.every"),
        (DPO, ["extra.deepspeed=ds.json"], "a run uses one GPU"),
        (SFT, ["extra.packing=true"], "a row is one prompt and its reply"),
        (GRPO, ["extra.remove_unused_columns=true"], "the rewards read"),
        (DPO, ["extra.max_prompt_length=5"], "trl and transformers no longer take it; prompts are"),
        (GRPO, ["lr_scheduler_type=reduce_lr_on_plateau"], "use another schedule"),
        (GRPO, ["lr_scheduler_type=cosin"], "Did you mean 'cosine'?"),
        (DPO, ["optim=adamw_torchh"], "Did you mean 'adamw_torch'?"),
        (GRPO, ["extra.importance_sampling_level=tokens"], "Did you mean 'token'?"),
        (DPO, ["extra.truncation_mode=left"], "Valid: keep_end, keep_start"),
        (
            DPO,
            ["extra.f_divergence_type=js_divergence", "loss_type=[apo_zero]"],
            "apo_zero takes none but reverse_kl",
        ),
        (DPO, ["extra.use_weighting=true", "loss_type=[aot]"], "use another training.loss_type"),
        (GRPO, ["extra.generation_kwargs={max_new_tokens: 9}"], "training.max_completion_length"),
        (GRPO, ["extra.accelerator_config={split_batches: true}"], "per_device_train_batch_size"),
        (DPO, ["extra.debug=5"], "expected text | list of text, got 5"),
        (DPO, ["extra.adam_epsilon=.inf"], "expected number, got Infinity"),
        (SFT, ["extra.lr_scheduler_kwargs={a: [.nan]}"], ', got the object {"a": [NaN]}'),
        (DPO, ["bf16=true", "fp16=true"], "bf16 and fp16 are both true"),
        (
            GRPO,
            ["steps_per_generation=2", "gradient_accumulation_steps=3"],
            "= 2 neither divides gradient_accumulation_steps = 3 nor is a multiple of it",
        ),
        (DPO, ["loss_weights=[1, 2, 3]"], "has 3 entries for 2 losses"),
        (DPO, ["loss_type=[exo_pair]"], "exo_pair needs label_smoothing"),
        (DPO, ["label_smoothing=0.1"], "changes nothing with loss_type sigmoid, sft; set it"),
    ],
)
def test_what_a_trainer_would_refuse_later_is_refused_at_once(
    cls: type[Section], overrides: list[str], expected: str
) -> None:
    message = refusal(cls, *(f"training.{override}" for override in overrides))
    assert f"training.{overrides[0].partition('=')[0]}" in message.replace(": ", ".", 2)
    assert expected in message


@pytest.mark.parametrize("cls", SETTINGS.values())
def test_help_lists_every_setting_with_a_meaning(cls: type[Section]) -> None:
    entries = describe(cls)
    leaves = {".".join(p) for p, v in walk(RESOLVED[cls]) if not isinstance(v, dict)}
    assert leaves - {"data.eval", "data.pass_rate"} <= entries.keys()
    for path, (head, meaning) in entries.items():
        assert re.fullmatch(rf"{path}: .+ (\(required( with \S+)?\)|= .+)", head)
        assert len(meaning) > 10, head
    assert entries["training.learning_rate"][0] == "training.learning_rate: number (required)"
    assert entries["lora.r"][0] == "lora.r: integer = 16"
    first = re.findall(r"^  (\S+): ", listed(cls, ""), re.MULTILINE)
    assert 15 <= len(first) <= 25 and set(first) <= set(OFTEN) <= {*describe(DPO), *describe(GRPO)}
    if cls is DPO:
        assert entries["data.eval"][0].endswith("= null")  # data.eval.path is required in it only


def test_help_of_a_word(capsys: Capsys) -> None:
    for words, name in (["all"], "run.threads"), (["patience"], "run.patience"):
        with pytest.raises(SystemExit) as left:
            parse(GRPO, "--help", *words)
        output = capsys.readouterr().out
        assert left.value.code == 0 and f"  {name}: " in output and "A story." not in output
    assert "run.threads" not in output
    with pytest.raises(SystemExit) as left:
        parse(GRPO, "--help", "nothng")
    assert left.value.code == 2
    assert "no setting has 'nothng' in its name; --help all" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["dpo", "grpo", "report", "demo_model"])
def test_help_needs_no_heavy_imports(script: str, ask: Ask) -> None:
    result = ask(script, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert ("training.learning_rate: number (required)" in result.stdout) == (script in SETTINGS)


def test_the_bait_catches(bait: Path) -> None:
    result = subprocess.run([sys.executable, "-c", "import torch"], env={"PYTHONPATH": str(bait)})
    assert result.returncode == 99


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config", "MINE"], ["mine.yaml", "training.lerning_rate", "Did you mean 'learning_"]),
        (["--config", "DEMO", "training.extra.adam_bet1=1"], ["Did you mean 'adam_beta1'?"]),
        ([], ["--config", "usage:"]),
        (["--config", "DEMO", "--resume", "FOLDER"], ["--resume ", "not a complete checkpoint"]),
    ],
)
def test_a_wrong_request_is_refused_before_heavy_imports(
    words: list[str], expected: list[str], ask: Ask, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    wrong = DEMOS[GRPO].read_text("utf-8").replace("learning_rate:", "lerning_rate:")
    mine.write_text(wrong, "utf-8")
    given = {"MINE": str(mine), "DEMO": str(DEMOS[GRPO]), "FOLDER": str(tmp_path)}
    result = ask("grpo", *(given.get(word, word) for word in words))
    assert (result.returncode, result.stdout) == (2, "")
    for part in expected:
        assert part in result.stderr
    assert "Traceback" not in result.stderr
