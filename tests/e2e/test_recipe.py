"""Every config in a dry run at the shape of its model, and the sizes of a run that it shows."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.model.recipe import recipe
from posttrain.model.shape import KNOWN, shape_of
from posttrain.settings.strict_yaml import read_yaml
from tests.e2e.trainers import build
from tests.families import THINKING
from tests.helpers import CONFIGS, SHARED, Capsys, needs_shared
from tests.reliability.inside import MAIN

LOCAL = {
    "grpo": [
        f"data.train={{path: '{SHARED / 'gsm8k' / 'train.jsonl'}'}}",
        f"data.eval={{path: '{SHARED / 'gsm8k' / 'test.jsonl'}'}}",
    ],
    "dpo": [
        f"data.train={{path: '{SHARED / 'french-preferences' / 'preferences.json'}'}}",
        "data.columns={prompt: instruction, chosen: chosen, rejected: rejected}",
        "data.holdout=100",
        "data.validation=50",
        f"evaluation.also=[{{name: mgsm_fr, path: '{SHARED / 'mgsm' / 'mgsm_fr.tsv'}', "
        f"language: fr}}, {{name: gsm8k, path: '{SHARED / 'gsm8k' / 'test.jsonl'}', limit: 200}}]",
    ],
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def card_config(path: Path, folder: Path) -> list[str]:
    """Overrides for a config of a card: local data, and a folder with its model's config.json and a
    tokenizer. A dry run reads no weights."""
    from transformers import AutoTokenizer

    name = read_yaml(path)["model"]["name"]
    model = folder / "model"
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "qwen2.5-tokenizer")
    if "chat_template_kwargs" in read_yaml(path)["prompt"]:
        tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(model)
    config = {"model_type": "qwen2", **KNOWN[name]}
    (model / "config.json").write_text(json.dumps(config))
    assert shape_of(str(model)) == shape_of(name)
    # The tokenizer is Qwen2.5's for every model.
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 151936}))
    return [f"model.name={model}", *LOCAL[read_yaml(path)["method"]]]


VARIANTS = ("1.5b", "16bit", "3b", "smollm2", "t4")  # of a config with the same data


@needs_shared
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.long if variant else (), id=path.stem)
        for path in CONFIGS
        for variant in [any(name in path.stem for name in VARIANTS)]
    ],
)
def test_every_config_passes_a_dry_run(path: Path, tmp_path: Path, capsys: Capsys) -> None:
    own = [] if "demo" in path.stem else card_config(path, tmp_path)
    method = read_yaml(path)["method"]
    command = ["--config", str(path), "--dry-run", "--output", str(tmp_path / "run"), *own]
    assert MAIN[method](command) == 0
    output = capsys.readouterr().out
    assert "nothing was trained" in output
    assert re.search(r"\n  peak memory +\d+\.\d GB, estimated", output)
    assert "outside" not in output  # the learning rate is one that others have used
    if "qwen3" in path.stem:
        assert "<think>" in output.replace("¦", "")  # between the tokens of a pair
    if "gsm8k" in path.stem and "cpu" not in path.stem:
        assert "32 prompts x 8 completions = 256 rollouts" in output
        assert re.search(r"\n  steps +22[56] \(1 epoch\)\n", output)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "rows", "overrides"),
    [
        ("grpo", 70, ("training.per_device_train_batch_size=64",)),
        # Two generations of 8 prompts a step, and the last step has one: 59 = 7 x 8 + 3.
        (
            "grpo",
            59,
            (
                *("training.per_device_train_batch_size=32", "training.steps_per_generation=2"),
                "training.gradient_accumulation_steps=4",
            ),
        ),
        ("grpo", 70, ("training.per_device_train_batch_size=64", "training.num_iterations=2")),
        ("grpo", 70, ("training.num_train_epochs=2.5",)),
        ("dpo", 70, ("training.gradient_accumulation_steps=2",)),
        ("dpo", 70, ("training.num_train_epochs=0.5",)),
    ],
)
def test_steps_are_those_of_the_trainer(
    method: str, rows: int, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    more = ("training.max_steps=-1", "training.save_steps=100", *overrides)
    made = build(method, tmp_path, *more, count=rows)
    trainer = made.trainer
    loader = trainer.get_train_dataloader()
    *_, steps = trainer.set_initial_training_values(trainer.args, loader)
    assert recipe(made.settings, rows).steps == steps


def test_rollouts_in_parts(tmp_path: Path) -> None:
    """A step that is sampled in two parts: as many completions of other prompts, all of the same
    weights, and every one learnt from."""
    made = build(
        *("grpo", tmp_path, "training.max_steps=2", "training.save_steps=2"),
        *("training.per_device_train_batch_size=32", "training.gradient_accumulation_steps=2"),
        "training.steps_per_generation=1",
        count=64,
    )
    trainer = made.trainer
    assert recipe(made.settings, 64).parts == 2
    generations: list[tuple[int, list[Any]]] = []
    generate = trainer._generate_and_score_completions

    def recording(rows: list[Any]) -> Any:
        out = generate(rows)
        generations.append((trainer.state.global_step, rows))
        assert out.get("old_per_token_logps") is None  # on-policy: nothing to correct
        return out

    trainer._generate_and_score_completions = recording
    trainer.train()
    assert [step for step, _ in generations] == [0, 0, 1, 1]
    questions = [row["question"] for _, rows in generations for row in rows]
    assert len(questions) == 128 and len(set(questions)) == 16
    assert all(row["grad_norm"] > 0 for row in trainer.state.log_history if "grad_norm" in row)
