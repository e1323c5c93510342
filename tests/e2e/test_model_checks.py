"""The model that a run names is checked before its weights are loaded, in a dry run too."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.model import checks, pretrained, runtime
from tests.e2e.test_families import as_text, noted, tokenizer_of
from tests.families import DATED
from tests.helpers import DEMO_MODEL, Capsys, demo_command, demo_settings, make_adapter
from tests.reliability.inside import MAIN, reported_here

METHODS = ("dpo", "grpo")  # what both share is tried with one of them


def check(*overrides: str) -> None:
    """check_model() on the demo's settings with `overrides`, and weights that cannot be loaded."""
    settings = demo_settings("dpo", *overrides)
    runtime.start(verbose=False, threads=None)
    tokenizer = pretrained.load_tokenizer(settings.model)
    checks.check_model(settings, tokenizer)


def main(method: str, output: Path, *overrides: str) -> int:
    return MAIN[method](demo_command(method, output, *overrides))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("[q_proj, v_prj]", "has no layer 'v_prj'. Did you mean 'v_proj'?"),
        ("[attn.q_proj]", "no layer 'attn.q_proj'. Did you mean 'self_attn.q_proj'?"),
        ("[proj]", "has no layer 'proj'."),  # peft matches what stands between dots
        ("[all-linear]", "has no layer 'all-linear'. Valid: down_proj, embed_tokens, gate_proj"),
        ("[mlp]", "'mlp' takes no LoRA, it is a Qwen2MLP; name layers inside it: down_proj, gate"),
        ("[q_proj, lm_head]", "lm_head has a row a token of the vocabulary and would be trained"),
        ("[q_proj, model.embed_tokens]", "model.embed_tokens has a row a token of the vocabulary"),
    ],
)
def test_names_that_are_no_layers(targets: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(f"lora.target_modules={targets}")


@pytest.mark.parametrize("name", ["q_proj", "self_attn.q_proj", "model.layers.1.mlp.up_proj"])
def test_ends_of_names_that_peft_matches(name: str) -> None:
    check(f"lora.target_modules=[{name}]")


def test_a_dry_run_refuses_a_layer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'v_proj'"):
        main("grpo", tmp_path / "run", "lora.target_modules=[v_prj]", "--dry-run")


def test_adapters_and_runs_are_refused_as_models(tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_adapter(DEMO_MODEL, run / "adapter")
    (run / "config.yaml").write_text("method: dpo\n")
    for folder, kind in ((run, "a run folder with an"), (run / "adapter", "an")):
        message = (
            f"^model.name: '{folder}' is {kind} adapter, not a model. To train on from it, set "
            rf"model.adapter: {run / 'adapter'} \(its base model is {DEMO_MODEL}\)$"
        )
        with pytest.raises(ConfigError, match=message):
            main("dpo", tmp_path / "new", f"model.name={folder}", "--dry-run")
    shutil.rmtree(run / "adapter")
    with pytest.raises(ConfigError, match="its training is not finished"):
        main("dpo", tmp_path / "new", f"model.name={run}", "--dry-run")
    assert not (tmp_path / "new").exists()


def test_a_folder_with_a_tokenizer_alone(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO_MODEL / name, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.name: cannot read the config of "):
        check(f"model.name={tmp_path}")


def make_model(folder: Path, change: Any) -> Path:
    """The demo model with a tokenizer that `change` changed."""
    shutil.copytree(DEMO_MODEL, folder)
    tokenizer = tokenizer_of(DEMO_MODEL)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_ids_beyond_the_embedding_are_refused_in_a_dry_run(method: str, tmp_path: Path) -> None:
    padded = make_model(
        tmp_path / "padded", lambda t: t.add_special_tokens({"pad_token": "<|padding|>"})
    )
    with pytest.raises(ConfigError, match=r"'<\|padding\|>' \(for padding .* ids below 886 only"):
        main(method, tmp_path / "run", f"model.name={padded}", "--dry-run")
    extended = make_model(tmp_path / "extended", lambda t: t.add_tokens(["<extra>"]))
    name = f"model.name={extended}"
    assert main(method, tmp_path / "run", name, "--dry-run") == 0  # no row uses it
    with pytest.raises(ConfigError, match=r"the token '<extra>' in .* has id 886"):
        main(method, tmp_path / "run", name, "prompt.system=Réponds <extra>.", "--dry-run")


def test_grpo_reads_one_date_in_training_and_scoring(tmp_path: Path, capsys: Capsys) -> None:
    """trl renders the prompts that are trained on, and this project those that are scored."""
    model = make_model(tmp_path / "model", lambda t: setattr(t, "chat_template", DATED))
    overrides = [
        *(f"model.name={model}", "data.train.limit=40", "data.validation=4"),
        *("training.max_steps=2", "training.save_steps=2", "training.num_generations=4"),
        *("training.per_device_train_batch_size=4", "training.max_completion_length=8"),
        "evaluation={limit: 4, max_new_tokens: 8, batch_size: 4}",
        "training.beta=0.1",  # else flat groups are left out of the training pass
    ]
    with noted() as rows, reported_here():
        assert main("grpo", tmp_path / "run", *overrides) == 0
    texts = [t for t in as_text(rows, tokenizer_of(model)) if "<|im_start|>system" in t]
    assert len(texts) > 4
    assert all("system\nToday Date: 01 Jan 2026\n" in text for text in texts)
    assert capsys.readouterr().out.count("note: the chat template writes today's date") == 1
