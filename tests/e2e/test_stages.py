"""Runs that start from an adapter: reference, resuming, the chain, what is refused."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.base.errors import ConfigError, DataError
from posttrain.chat import source
from posttrain.chat.models import Weights
from posttrain.data.demonstrations import load_demonstrations
from posttrain.data.pairs import load_pair_set
from posttrain.data.prompted import user_turns
from posttrain.data.text import text_key
from posttrain.model.provenance import read_record
from posttrain.settings import Evaluation
from posttrain.settings.command import SETTINGS
from posttrain.settings.strict_yaml import read_yaml
from scripts import dpo, evaluate, export, report
from tests.e2e import trainers
from tests.e2e.trainers import plain
from tests.helpers import (
    DEMO_DATA,
    DEMO_MODEL,
    ROOT,
    Capsys,
    demo_command,
    demo_settings,
    make_adapter,
    read,
    write_rows,
)
from tests.reliability.inside import MAIN, leave_with, losses

FEW = ["training.max_steps=2", "training.save_steps=1", "training.per_device_train_batch_size=8"]
SMALL = {
    "dpo": [*FEW, "training.loss_type=[sigmoid]", "evaluation={limit: 8, replies: 2, also: []}"],
    "grpo": [
        *(*FEW, "training.max_completion_length=40", "training.beta=0.1"),
        "evaluation={limit: 4, max_new_tokens: 40}",
    ],
}
AT_EACH_STEP = "training.precompute_ref_log_probs=false"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """GRPO, DPO from its adapter, GRPO with a KL term from that: three finished runs."""
    folder = tmp_path_factory.mktemp("chain")
    runs: list[Path] = []
    for number, method in enumerate(("grpo", "dpo", "grpo"), start=1):
        start = [f"model.adapter={runs[-1]}"] if runs else []
        run = folder / f"stage{number}"
        assert leave_with(method, run, *SMALL[method], *start) == 0
        runs.append(run)
    return runs


def trained(method: str, folder: Path, *overrides: str) -> Any:
    """Two steps, with what the reference said of each reply: (prompt ids, reply ids, its log-
    probabilities or their sum)."""
    built = trainers.build(method, folder, *SMALL[method], *overrides)
    trainer, printed = built.trainer, []
    if method == "grpo":
        generate = trainer._generate_and_score_completions

        def recorded(inputs: Any) -> Any:
            output = generate(inputs)
            names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
            for *ids, values in zip(
                *(output[name] for name in names), output["ref_per_token_logps"], strict=True
            ):
                prompt, reply = (i[m.bool()].tolist() for i, m in (ids[:2], ids[2:]))
                printed.append((prompt, reply, values[ids[3].bool()]))
            return output

        trainer._generate_and_score_completions = recorded
    trainer.train()
    if method == "dpo":  # after the last step: a reference that does not move
        for row in trainer.train_dataset.select(range(8)):
            inputs = trainer.data_collator([row])
            now = trainer.compute_ref_log_probs(built.model, inputs)
            for side, value in zip(("chosen", "rejected"), now, strict=True):
                known = row.get(f"ref_{side}_logps", float(value))
                for each in (known, float(value)):
                    printed.append((row["prompt_ids"], row[f"{side}_ids"], each))
    return SimpleNamespace(model=built.model, printed=printed, log=trainers.logged(trainer))


def distance(printed: list[Any], model: Any) -> float:
    """The largest difference for a token between what a reference said and what a model says."""
    import torch

    differences = []
    for prompt, reply, values in printed:
        exact = trainers.token_log_probs(model, prompt, reply)
        if isinstance(values, torch.Tensor):
            differences.append(float((values - exact).abs().max()))
        else:
            differences.append(abs(values - float(exact.sum())) / len(reply))
    return max(differences)


# Overrides, and how near log-probabilities are: the mean of a reply's tokens, and any token.
# trl trains the adapter of 4-bit weights in bfloat16, which processors round differently. In 16
# bits fused LoRA layers round otherwise than peft's, and are as near to float32 (test_fused_lora).
LONG = pytest.mark.long
KINDS = {
    "float32": ([], 1e-5, 1e-5),
    "4 bits": (["model.load_in_4bit=true"], 0.02, 0.2),
    "16 bits": (["model.dtype=bfloat16"], 0.03, 0.2),
    "dora": ([], 1e-5, 1e-5),
}


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        *((kind, way) for kind in KINDS for way in ("dpo", "grpo")),
        ("float32", "dpo at each step"),
        *(pytest.param(k, "dpo at each step", marks=LONG) for k in KINDS if k != "float32"),
    ],
)
def test_reference_is_the_policy_as_loaded(
    kind: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step, against transformers and peft alone."""
    import torch

    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    method = way.split()[0]
    overrides, *nearness = KINDS[kind]
    near = nearness[method == "grpo"]
    exact = near < 1e-4
    start = make_adapter(
        DEMO_MODEL, tmp_path / "start", 0.05 if exact else 0.1, use_dora=kind == "dora"
    )
    overrides = [*overrides, f"model.adapter={start}"]
    if way == "dpo at each step":
        overrides = [*overrides, AT_EACH_STEP]
    run = trained(method, tmp_path, *overrides)
    options: dict[str, Any] = {}
    if kind == "4 bits":
        options["quantization_config"] = run.model.config.quantization_config
    if kind == "16 bits":
        options["dtype"] = torch.bfloat16
    assert len(run.printed) >= 16 and distance(run.printed, plain(start, **options)) < near
    assert distance(run.printed, plain(None, **options)) > 10 * near  # the bare base is another
    assert list(run.model.peft_config) == ["default"]
    first, second = run.log
    if method == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6 if exact else 1e-4)
        for side in ("chosen", "rejected"):
            assert first[f"rewards/{side}"] == pytest.approx(0, abs=1e-5 if exact else 1e-2)
        assert second["loss"] < first["loss"]
    else:
        assert first["kl"] == pytest.approx(0, abs=1e-7)
        assert second["kl"] > 1e-7


@pytest.mark.parametrize(
    ("method", "overrides"), [("dpo", []), ("dpo", [AT_EACH_STEP]), ("grpo", [])]
)
def test_a_run_that_is_stopped_keeps_its_reference(
    method: str, overrides: list[str], chain: list[Path], tmp_path: Path
) -> None:
    """Resumed, it is bit by bit the run that was not stopped; a checkpoint has one adapter."""
    first, second, third = chain
    start = first if method == "dpo" else second
    given = [*SMALL[method], f"model.adapter={start}", *overrides]
    complete = {"dpo": second, "grpo": third}[method]
    if overrides:
        complete = tmp_path / "complete"
        assert leave_with(method, complete, *given) == 0
    run = tmp_path / "stopped"
    assert leave_with(method, run, *given, "run.max_minutes=0.00001") == 0
    assert not (run / "adapter").exists()
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    assert [path.name for path in checkpoint.rglob("*.safetensors")] == [
        "adapter_model.safetensors"
    ]
    assert leave_with(method, run, *given) == 0
    weights = "adapter/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (complete / weights).read_bytes()
    assert losses(run) == losses(complete) and len(losses(run)) == 2


def test_the_chain_is_written_down(chain: list[Path]) -> None:
    *_, second, third = chain
    stages = [read(r / "environment.json") for r in chain]
    assert "stages" not in stages[0]
    (first_of_second,) = stages[1]["stages"]
    assert first_of_second["name"] == "stage1" and first_of_second["method"] == "grpo"
    assert first_of_second["steps"] == 2 and first_of_second["data"] == stages[0]["data"]
    assert {"value", "n"} <= set(first_of_second["before"]) & set(first_of_second["after"])
    assert stages[2]["stages"][0] == first_of_second
    assert [s["name"] for s in stages[2]["stages"]] == ["stage1", "stage2"]
    page = (third / "report.html").read_text("utf-8")
    card = (third / "README.md").read_text("utf-8")
    for text in (page, card):
        assert "stage1: GRPO, 2 steps" in text and "stage2: DPO, 2 steps" in text
    assert "| earlier stage | stage1: GRPO, 2 steps; " in (second / "README.md").read_text("utf-8")


def test_what_was_trained_on_is_recorded(chain: list[Path]) -> None:
    for method, run in zip(("grpo", "dpo"), chain, strict=False):
        given = SETTINGS[method].model_validate(read_yaml(run / "config.yaml"))
        rows = trainers.rows_of(method, given)
        questions = user_turns(rows) if method == "dpo" else [row.question for row in rows]
        recorded = read_record(run)
        assert recorded and {text_key(question) for question in questions} <= recorded.questions


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_rows_that_an_earlier_stage_trained_on_are_not_held_out(
    method: str, chain: list[Path], tmp_path: Path, capsys: Capsys
) -> None:
    """Of the stage before, and of the one before that, whose run may be gone."""
    seen, unseen = (DEMO_DATA / f"problems_{name}.jsonl" for name in ("train", "test"))
    also = f"[{{name: arithmetic, path: {seen}, limit: 50, max_new_tokens: 80}}]"
    held = {
        "grpo": [f"data.eval.path={seen}", f"data.train.path={unseen}"],
        "dpo": [f"evaluation.also={also}"],
    }[method]
    for start in chain[:2]:
        given = [*SMALL[method], *held, f"model.adapter={start}", "--dry-run"]
        assert leave_with(method, tmp_path / "run", *given) == 2
        error = capsys.readouterr().err
        assert f"of the held-out questions were trained on by {start} or a stage before it" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_commands_on_a_later_stage_and_without_the_earlier_ones(
    chain: list[Path], tmp_path: Path
) -> None:
    runs = [shutil.copytree(run, tmp_path / run.name) for run in chain]
    config = runs[2] / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(str(chain[1]), str(runs[1])), "utf-8")
    conversation = ({"role": "user", "content": "What is 2 + 2?"},)

    def sides() -> dict[str, str]:
        weights = Weights(source.find(str(runs[2])), Evaluation(max_new_tokens=24))
        streams = {"before": weights.base, "after": weights.tuned}
        if weights.start_name:
            streams["start"] = weights.start
        return {name: list(s(conversation, 0))[-1].text for name, s in streams.items()}

    def answered(adapter: Path | None) -> str:
        weights = Weights(source.find(str(adapter or DEMO_MODEL)), Evaluation(max_new_tokens=24))
        return list(weights.tuned(conversation, 0))[-1].text

    make_adapter(DEMO_MODEL, runs[1] / "adapter", spread=0.1)  # which says something else
    three = sides()
    assert three["start"] == answered(runs[1]) != three["before"] == answered(None)
    assert three["after"] == answered(runs[2])
    seen = ["--data", str(DEMO_DATA / "problems_train.jsonl"), "--limit", "8"]
    refused = r"8 of 8 questions were trained on by .* or a stage before it, such"
    with pytest.raises(DataError, match=refused):
        evaluate.main(["--model", str(chain[1] / "adapter"), *seen])
    for earlier in runs[:2]:
        shutil.rmtree(earlier)
    assert sides() == {name: three[name] for name in ("before", "after")}
    assert report.main([str(runs[2])]) == 0
    assert "stage1: GRPO" in (runs[2] / "report.html").read_text("utf-8")
    unseen = ["--data", str(DEMO_DATA / "problems_test.jsonl"), "--limit", "4"]
    output = ["--max-new-tokens", "40", "--output", str(tmp_path / "scores")]
    assert evaluate.main(["--model", str(runs[2] / "adapter"), *unseen, *output]) == 0
    elsewhere = tmp_path / "elsewhere"
    given = [str(runs[2]), "export.to=[merged_16bit]", "--output", str(elsewhere)]
    assert export.main(given) == 0
    assert (elsewhere / "merged_16bit" / "model.safetensors").is_file()
    with pytest.raises(DataError, match=r"8 of 8 questions were trained on by .*/merged_16bit"):
        evaluate.main(["--model", str(elsewhere / "merged_16bit"), *seen])


@pytest.mark.parametrize(
    ("method", "scored", "message"),
    [
        (
            "dpo",
            "evaluation.also=[{name: own, path: PATH, max_new_tokens: 40}]",
            r"evaluation\.also: own: 1 of 1 questions are prompts of",
        ),
        (
            "sft",
            "data.problems={path: PATH}",
            r"problems\.jsonl: row 1 is also in the training data",
        ),
    ],
    ids=["dpo", "sft"],
)
def test_rows_that_choose_the_checkpoint_are_no_questions_to_score(
    method: str, scored: str, message: str, tmp_path: Path
) -> None:
    load: Any = {"dpo": load_pair_set, "sft": load_demonstrations}[method]
    settings = demo_settings(method, "data.validation=20")
    question = user_turns(load(settings.data, settings.prompt).validation)[0]
    path = write_rows(tmp_path / "problems.jsonl", {"question": question, "answer": "7"})
    given = ("data.validation=20", scored.replace("PATH", str(path)), "--dry-run")
    with pytest.raises(DataError, match=message):
        MAIN[method](demo_command(method, tmp_path / "run", *given))


# --- what cannot be started from ------------------------------------------------------------------


def other_rank(folder: Path) -> None:
    """The weights of another adapter."""
    make_adapter(DEMO_MODEL, folder.parent / "other", r=4, lora_alpha=8)
    shutil.copy(folder.parent / "other" / "adapter_model.safetensors", folder)


def other_base(folder: Path, **shape: Any) -> None:
    """Its base model has another shape now."""
    base = shutil.copytree(DEMO_MODEL, folder.parent / "base")
    for path, values in (
        (base / "config.json", shape),
        (folder / "adapter_config.json", {"base_model_name_or_path": str(base)}),
    ):
        path.write_text(json.dumps({**read(path), **values}), "utf-8")


def layers(number: int) -> dict[str, Any]:
    return {"num_hidden_layers": number, "layer_types": ["full_attention"] * number}


def truncated(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "adapter_model.safetensors cannot be read"),
        (pickled, "adapter_model.safetensors cannot be read"),
        (other_rank, r"does not fit: .*_A\.weight is \[4, .* require \[16, "),
        (
            lambda folder: other_base(folder, hidden_size=64),
            "does not fit: .*; it was trained on another model",
        ),
        (
            lambda folder: other_base(folder, **layers(2)),
            r"holds .*layers\.2.*, which is not of a layer of the base model",
        ),
        (
            lambda folder: other_base(folder, **layers(6)),
            r"lacks .*layers\.4.*, which is of a layer of the base model",
        ),
    ],
    ids=["truncated", "pickled", "rank", "narrower", "fewer layers", "more layers"],
)
def test_weights_that_do_not_fit_are_refused_in_a_dry_run(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    adapter = make_adapter(DEMO_MODEL, tmp_path / "adapter")
    damage(adapter)
    text = (ROOT / "configs" / "dpo_demo.yaml").read_text("utf-8")
    config = tmp_path / "config.yaml.txt"
    config.write_text(text.replace("  name: assets/demo_model\n", ""))
    given = ["--config", str(config), "--output", str(tmp_path / "run"), f"model.adapter={adapter}"]
    for more in (["--dry-run"], []):
        with pytest.raises(ConfigError, match=rf"^model\.adapter: .*{message}") as refused:
            dpo.main([*given, *more])
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "checkpoints").exists()
