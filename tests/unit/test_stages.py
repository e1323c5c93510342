"""Settings of a run that starts from an adapter, and what cannot be started from. No torch."""

import re
from pathlib import Path
from typing import Any

import pytest

from eval.gsm8k import Problem
from posttrain.base.errors import ConfigError, DataError
from posttrain.data.text import text_key
from posttrain.model.provenance import TrainedOn, read_record, refuse_earlier_stages, write_record
from posttrain.scoring.evaluation import refuse_trained_on
from posttrain.settings import Model
from posttrain.settings.command import SETTINGS, load_settings
from posttrain.settings.strict_yaml import dump_yaml, read_yaml
from tests.helpers import ROOT, write_rows
from tests.unit.conftest import Ask, make_config, write_file

DEMO = ROOT / "assets" / "demo_model"


def make_run(folder: Path) -> Path:
    """A run folder with its settings and its adapter's config alone."""
    make_config(folder / "adapter")
    settings: dict[str, Any] = {"model": {}, "data": {}, "training": {}}
    (folder / "config.yaml").write_text(dump_yaml(settings), "utf-8")
    return folder


def make_settings(method: str, tmp_path: Path, *overrides: str) -> Any:
    """The demo's settings without a model or a LoRA, with `overrides`."""
    demo = read_yaml(ROOT / "configs" / f"{method}_demo.yaml")
    del demo["model"]["name"]
    path = write_rows(tmp_path / "config.yaml.txt", {**demo, "lora": {}})  # JSON is YAML
    return load_settings(SETTINGS[method], path, overrides)


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_settings_are_those_of_the_adapter(method: str, tmp_path: Path) -> None:
    run = make_config(tmp_path / "run" / "adapter").parent
    for folder in (run, run / "adapter"):
        settings = make_settings(method, tmp_path, f"model.adapter={folder}")
        assert settings.model.name == str(DEMO) and settings.model.adapter == str(folder)
        given = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
        assert settings.lora.model_dump() == {**given, "use_rslora": True, "use_dora": False}


def test_settings_that_agree_are_accepted(tmp_path: Path) -> None:
    adapter = make_config(tmp_path / "adapter", lora_dropout=0.05)
    agreeing = [
        *("lora.r=4", "lora.alpha=8", "lora.dropout=0.05", "lora.target_modules=[q_proj, v_proj]"),
        *("lora.use_rslora=true", "lora.use_dora=false"),
    ]
    for name in ("assets/demo_model", str(DEMO), str(ROOT / "assets" / ".." / "assets/demo_model")):
        overrides = [f"model.adapter={adapter}", f"model.name={name}", *agreeing]
        assert make_settings("dpo", tmp_path, *overrides).model.name == name
    hub = make_config(tmp_path / "hub", base_model_name_or_path="Qwen/Qwen2.5-0.5B-Instruct")
    copies = ("unsloth/qwen2.5-0.5b-instruct-unsloth-bnb-4bit", "Qwen/Qwen2.5-0.5B-Instruct")
    for name in copies:
        overrides = [f"model.adapter={hub}", f"model.name={name}"]
        assert make_settings("dpo", tmp_path, *overrides).model.name == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.r=8", "lora.r is 8, and the adapter .* has 4; .* leave the setting out"),
        ("lora.dropout=0.1", r"lora.dropout is 0.1, and the adapter .* has 0.0;"),
        ("lora.target_modules=[q_proj]", r'lora.target_modules is .* \["q_proj"\], .* "v_proj"\];'),
        ("lora.use_rslora=false", "lora.use_rslora is false, and the adapter .* has true;"),
        ("model.name=Qwen/Qwen2.5-0.5B", "model.name is Qwen/Qwen2.5-0.5B, and the adapter"),
        ("model.adapter=outputs/no_such_run", "there is no run folder or adapter folder 'outputs"),
        ("model.adapter=~nosuchuser/x", "there is no run folder or adapter folder '~nosuchuser/x'"),
    ],
)
def test_contradictions_are_refused_by_name(override: str, message: str, tmp_path: Path) -> None:
    adapter = make_config(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=message) as refused:
        make_settings("dpo", tmp_path, f"model.adapter={adapter}", override)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "is a IA3 adapter, not LoRA"),
        ({"modules_to_save": ["lm_head"]}, r"trains complete modules \(modules_to_save\)"),
        ({"target_modules": ["q_proj", "lm_head"]}, "changes lm_head"),
        ({"target_modules": "all-linear"}, "names its layers by a pattern"),
        ({"rank_pattern": {"q_proj": 2}}, r"differs from layer to layer \(rank_pattern\)"),
        ({"bias": "all"}, "trains biases"),
        ({"init_lora_weights": "pissa"}, "holds a part of the base weights"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "/no/such/model"}, "base model /no/such/model does not exist"),
        *((text, "adapter") for text in ('{"r": 4', "[]", '{"r": 4}', "\xff")),  # damaged
    ],
)
def test_unusable_adapters(changes: dict[str, Any] | str, message: str, tmp_path: Path) -> None:
    adapter = make_config(tmp_path / "adapter", **({} if isinstance(changes, str) else changes))
    if isinstance(changes, str):
        (adapter / "adapter_config.json").write_text(changes, "latin-1")
    with pytest.raises(ConfigError, match=message) as refused:
        make_settings("grpo", tmp_path, f"model.adapter={adapter}")
    assert str(adapter) in str(refused.value) and "\n" not in str(refused.value)
    assert "model.adapter" in str(refused.value)


def test_held_out_questions_of_earlier_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their text apart from spelling, from the adapter or from merged weights of the run."""
    run = make_run(tmp_path / "run")
    write_record(run, TrainedOn({text_key("How many pens?"), text_key("Two or three?")}))
    merged = run / "merged_16bit"
    merged.mkdir()
    for start in (
        Model(name="base", adapter=str(run)),
        Model(name="base", adapter=str(run / "adapter")),
        Model(name=str(merged)),
    ):
        with pytest.raises(DataError, match=r"^1 of the held-out .* such as 'How many PENS \?'; "):
            refuse_earlier_stages(start, ["How many PENS ?", "How many cups?"])
        refuse_earlier_stages(start, ["How many cups?"])
    refuse_earlier_stages(Model(name="someone/model"), ["How many pens?"])
    assert capsys.readouterr().out == ""
    (run / "trained_on.json").unlink()
    make_config(tmp_path / "alone")
    for unknown, name in ((run, "run"), (tmp_path / "alone", tmp_path / "alone")):
        refuse_earlier_stages(Model(name="base", adapter=str(unknown)), ["How many pens?"])
        note = f"note: {name} has no trained_on.json, so what it was trained on is unknown\n"
        assert capsys.readouterr().out == note


def test_records_of_stages_add_up(tmp_path: Path) -> None:
    first, second = TrainedOn({"a"}, ["stage1"]), TrainedOn({"b"}, ["stage1", "stage0"])
    assert first | second | None == TrainedOn({"a", "b"}, ["stage1", "stage0"])
    write_record(tmp_path, first | second)
    assert read_record(tmp_path) == first | second
    path = tmp_path / "trained_on.json"
    complete = path.read_bytes()
    for damaged in (b"", complete[:-5], b"\xff\xfe", b"[]", b"{}", b'{"questions": [1]}'):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"trained_on\.json is damaged, .*; delete it to score"):
            read_record(tmp_path)


def test_what_is_not_known_is_not_zero(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    problems = [Problem("How many pens?", "1"), Problem("How many cups?", "2")]

    def overlap(model: Path | str, allow: bool = False) -> int | None:
        return refuse_trained_on(str(model), "data", problems, allow)

    assert overlap("someone/model") == 0
    assert overlap(run / "adapter") is None
    write_record(run, TrainedOn({text_key("How many pens?")}))
    with pytest.raises(
        DataError, match=r"^data: 1 of 2 questions were trained on by .*/adapter or"
    ):
        overlap(run / "adapter")
    assert overlap(run / "adapter", allow=True) == 1


def test_a_run_may_not_move_aside_what_it_starts_from(ask: Ask, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    config = ["--config", ROOT / "configs" / "dpo_demo.yaml", "--output", run]
    done = ask("dpo", *config, f"model.adapter={run}", "lora={}", "--resume", "never")
    assert done.returncode == 2
    assert re.fullmatch(rf"error: {run} holds what this run starts from.*\n", done.stderr)
    assert (run / "adapter").is_dir()


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    run = write_file(tmp_path / "run" / "config.yaml", "method: dpo\n").parent
    with pytest.raises(ConfigError, match=r"is not finished, so it has no adapter/ yet; give its"):
        make_settings("dpo", tmp_path, f"model.adapter={run}")
    step = make_config(run / "checkpoints" / "step-000002")
    assert make_settings("dpo", tmp_path, f"model.adapter={step}").lora.r == 4
