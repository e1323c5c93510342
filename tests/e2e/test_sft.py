"""SFT runs: what has a loss, what the loss is, which step is kept, and what a run leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.data.demonstrations import load_demonstrations
from posttrain.data.prompted import user_turns
from posttrain.data.render import render
from posttrain.data.text import text_key
from posttrain.model.provenance import read_record
from posttrain.train.micro_batches import NOT_SCORED
from scripts import evaluate, sft
from tests.e2e.trainers import TINY, Built, build, logged
from tests.helpers import (
    DEMO_DATA,
    ROOT,
    SHARED,
    Capsys,
    demo_command,
    demo_settings,
    make_qwen,
    needs_shared,
    read,
    rows,
)
from tests.reliability.inside import collapse, leave_with

PROBLEMS = DEMO_DATA / "problems_test.jsonl"
EXAMPLE = {"question": "Anna has 2 pens. She buys 3.", "answer": "2 + 3 = 5.\n<answer>5</answer>"}
EXAMPLES = f"prompt.examples={json.dumps([EXAMPLE])}"


@pytest.fixture(scope="module", params=["demo", pytest.param("qwen2.5", marks=needs_shared)])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """8 rows in a batch, with the demo's tokenizer, and with the real one of Qwen2.5."""
    folder = tmp_path_factory.mktemp(request.param)
    own = ["training.per_device_train_batch_size=8", "training.max_steps=1", EXAMPLES]
    if request.param != "demo":
        model = make_qwen(folder / "m", SHARED / "qwen2.5-tokenizer", **TINY)
        own += [f"model.name={model}", "model.max_seq_length=400"]
    return build("sft", folder, *own, count=8)


def batch_of(trainer: Any) -> dict[str, Any]:
    return dict(trainer.data_collator([trainer.train_dataset[i] for i in range(8)]))


def test_labels_are_the_reply_and_one_end_of_sequence(built: Built) -> None:
    """Nothing of the prompt, in which a worked example is a reply too, and no newline after EOS."""
    tokenizer, batch = built.tokenizer, batch_of(built.trainer)
    lengths = set()
    for row, ids, mask, labels in zip(
        built.rows, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        prompt, reply = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (render(tokenizer, row.conversation), row.reply)
        )
        scored = [*reply, tokenizer.eos_token_id]
        padding = [NOT_SCORED] * (len(ids) - len(prompt) - len(scored))
        assert ids[mask.bool()].tolist() == [*prompt, *scored]
        assert labels.tolist() == [*[NOT_SCORED] * len(prompt), *scored, *padding]
        assert tokenizer.decode(scored) == row.reply + tokenizer.eos_token
        assert EXAMPLE["answer"] in tokenizer.decode(prompt)
        lengths.add(len(padding))
    assert len(lengths) > 1  # so that some rows are padded


def test_the_first_loss_is_the_cross_entropy_of_the_replies(built: Built) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    trainer, batch = built.trainer, batch_of(built.trainer)
    base = trainer.model.peft_config["default"].base_model_name_or_path
    exact = AutoModelForCausalLM.from_pretrained(ROOT / base, dtype=torch.float64).eval()
    read_by_it = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = exact(**read_by_it).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        scored = labels != NOT_SCORED
        expected = torch.nn.functional.cross_entropy(logits[scored], labels[scored])
    trainer.train()
    (first,) = (row["loss"] for row in logged(trainer))
    assert first == pytest.approx(float(expected), abs=1e-5)


# --- runs -----------------------------------------------------------------------------------------

LEARNING = (
    *("training.max_steps=12", "training.save_steps=3", "data.validation=30", "data.holdout=20"),
    "evaluation={limit: 20, max_new_tokens: 80, batch_size: 60, every: 3}",
)


@pytest.fixture(scope="module", params=["strict", "reply_loss"])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The measure that decides and a run whose learning rate is 100 times too high from step 6 on.

    With `data.problems` strict accuracy decides, else the loss of the rows set aside.
    """
    folder = tmp_path_factory.mktemp("sft") / request.param
    given = [*LEARNING, EXAMPLES]
    given += ["data.problems=null"] if request.param == "reply_loss" else []
    with collapse(sft, 6):
        assert leave_with("sft", folder, *given) == 0
    return request.param, folder


def test_the_best_step_is_kept(run: tuple[str, Path]) -> None:
    by, folder = run
    actual = {
        row["step"]: row["measures"][by]["value"] for row in rows(folder / "eval/validation.jsonl")
    }
    assert list(actual) == [0, 3, 6, 9, 12]
    best = min(actual.values()) if by == "reply_loss" else max(actual.values())
    kept = read(folder / "environment.json")["kept"]
    assert kept["by"] == by and kept["value"] == best == actual[kept["step"]]
    assert kept["step"] in (3, 6) and actual[12] != best


def test_what_a_run_leaves_behind(run: tuple[str, Path]) -> None:
    by, folder = run
    compared = read(folder / "eval/comparison.json")
    loss = compared["reply_loss"]
    assert loss["difference"] < 0 and loss["n"] == 20
    assert ("strict" in compared) == (by == "strict")
    page, card = ((folder / name).read_text("utf-8") for name in ("report.html", "README.md"))
    for text in (page.lower(), card.lower()):
        assert "sft" in text and "loss of held-out replies" in text
        assert ("strict accuracy" in text) == (by == "strict")
    assert json.dumps(EXAMPLE["question"])[1:-1] in card  # in the code that asks the model
    assert list((folder / "plots").glob("*.png"))
    assert "examples:" in (folder / "config.yaml").read_text("utf-8")


def test_rows_that_chose_the_adapter_count_as_trained_on(run: tuple[str, Path]) -> None:
    _, folder = run
    settings = demo_settings("sft", *LEARNING)
    replies = load_demonstrations(settings.data, settings.prompt)
    train, held_out, validation = (
        {text_key(turn) for turn in user_turns(side)}
        for side in (replies.train, replies.held_out, replies.validation)
    )
    record = read_record(folder)
    assert record and record.questions == train | validation and not record.unknown
    assert validation and not held_out & (train | validation)


def test_an_evaluation_of_a_run_asks_as_it_was_trained(
    run: tuple[str, Path], tmp_path: Path
) -> None:
    by, folder = run
    if by != "strict":
        pytest.skip("one run is enough")
    requested = ["--model", str(folder), "--data", str(PROBLEMS), "--limit", "20"]
    requested += ["--max-new-tokens", "80", "--batch-size", "60"]
    requested += ["--output", str(tmp_path / "scored")]
    assert evaluate.main(requested) == 0
    request = read(tmp_path / "scored" / "request.json")
    assert request["examples"] == [EXAMPLE]
    assert request["system"].startswith("Solve the problem step by step")
    after = read(folder / "eval/after.json")
    measured = read(tmp_path / "scored" / "report.json")["measures"]
    assert {name: measured[name] for name in after if name in measured} == {
        name: value for name, value in after.items() if name in measured
    }
    assert "strict" in measured
    # Other examples are another request, whose answers are not mixed with these.
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(EXAMPLE | {"answer": "<answer>5</answer>"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="examples was"):
        evaluate.main([*requested, "--examples", str(other)])


def test_without_scores(tmp_path: Path, capfd: Capsys) -> None:
    assert leave_with("sft", tmp_path / "run", "run.score=false", "training.max_steps=2") == 0
    assert "not scored on the held-out data" in capfd.readouterr().out
    assert not (tmp_path / "run" / "eval" / "comparison.json").exists()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_dry_run_shows_the_tokens(tmp_path: Path, capsys: Capsys) -> None:
    assert sft.main(demo_command("sft", tmp_path / "run", "--dry-run", EXAMPLES)) == 0
    output = capsys.readouterr().out
    assert "warning: data.format: solutions" in output
    assert "1 worked example, " in output and "tokens a prompt" in output
    assert "with one):" in output and "[<|im_end|>]\n" in output
    assert "nothing was trained" in output and not (tmp_path / "run").exists()
