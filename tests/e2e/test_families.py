"""Both scripts on tiny models of several families: prompts, end tokens, scores, merged weights."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eval import PromptFormat, conversation
from posttrain.base.errors import ConfigError
from posttrain.data.render import render, set_template_variables
from posttrain.model import inference
from posttrain.settings import Evaluation
from posttrain.train import session
from scripts import evaluate, export
from tests.e2e import trainers
from tests.families import FAMILIES, Family, make_model
from tests.helpers import DEMO_DATA, demo_command, read, rows
from tests.reliability.inside import MAIN, reported_here, steps

METHODS = ("grpo", "dpo")
ASSISTANT, THOUGHTS = "<|im_start|>assistant\n", "<think>\n\n</think>\n\n"
PARITY = ["export.parity.new_tokens=8"]
REWARD = """
def letters(completions, **columns):
    return [float(len(turns[-1]["content"]) % 5) for turns in completions]
"""


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@contextlib.contextmanager
def noted() -> Iterator[list[list[int]]]:
    """The rows of token ids that any model reads inside of the block, but for single tokens."""
    import torch

    rows: list[list[int]] = []
    forward = torch.nn.Embedding.forward

    def noting(layer: Any, ids: Any) -> Any:
        if ids.ndim == 2 and ids.shape[1] > 1:
            rows.extend(ids.tolist())
        return forward(layer, ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Embedding, "forward", noting)
        yield rows


def as_text(rows: list[list[int]], tokenizer: Any) -> list[str]:
    """The rows as text, without padding on either side."""
    pad = tokenizer.pad_token_id
    kept = [[position for position, token in enumerate(row) if token != pad] for row in rows]
    return [tokenizer.decode(row[k[0] : k[-1] + 1]) for row, k in zip(rows, kept, strict=True)]


@dataclass(frozen=True)
class Made:
    """A model, a run of two steps of each script on it, and what their policies read."""

    name: str
    folder: Path
    rows: dict[str, list[list[int]]]

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    def run(self, method: str) -> Path:
        return self.folder / method

    def texts(self, method: str) -> list[str]:
        return as_text(self.rows[method], tokenizer_of(self.run(method) / "adapter"))

    def overrides(self, method: str) -> list[str]:
        actual = [
            *(f"model.name={self.folder / 'model'}", "data.train.limit=40", "data.validation=4"),
            *("training.max_steps=2", "training.save_steps=1", *PARITY),
            "training.per_device_train_batch_size=4",
        ]
        if method == "grpo":
            reward = self.folder / "letters.py"
            reward.write_text(REWARD, encoding="utf-8")
            actual += [
                *(f"rewards={{'{reward}:letters': 1.0}}", "training.num_generations=4"),
                "training.max_completion_length=12",
                "evaluation={limit: 4, max_new_tokens: 12, batch_size: 4, every: 1}",
            ]
        else:
            actual += [
                *("data.holdout=4", "training.loss_type=[sigmoid]"),
                "evaluation={limit: 4, replies: 4, max_new_tokens: 12, batch_size: 4, also: [], "
                "every: 1}",
            ]
        if self.name == "qwen3":
            actual.append("prompt.chat_template_kwargs.enable_thinking=false")
        if self.name == "gemma":
            actual.append("prompt.system=null")
        return actual

    def main(self, method: str, *more: str) -> int:
        """What the script returns, as it is called by a user."""
        given = demo_command(method, self.run(method), *self.overrides(method), *more)
        with reported_here(), pytest.MonkeyPatch.context() as patch:
            if self.name != "qwen3":  # whose card is read
                patch.setattr(session, "report", lambda run: None)
            return MAIN[method](given)


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    make_model(request.param, folder / "model")
    actual = Made(request.param, folder, {})
    for method in METHODS:
        with noted() as read_by_it:
            assert actual.main(method) == 0
        actual.rows[method] = read_by_it
    return actual


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_and_scores(made: Made, method: str) -> None:
    trained = steps(made.run(method))
    assert [row["step"] for row in trained] == [1, 2]
    assert max(row["grad_norm"] for row in trained) > 0
    before, after, comparison = (
        read(made.run(method) / "eval" / f"{name}.json")
        for name in ("before", "after", "comparison")
    )
    assert set(before) == set(after) == set(comparison)
    if method == "grpo":
        assert {measure["n"] for measure in before.values()} == {4}
    else:
        assert trained[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
        assert before["reward_margin"]["value"] == pytest.approx(0, abs=1e-5)
        assert before["kl_per_token"]["value"] == pytest.approx(0, abs=1e-6)
        assert after["kl_per_token"]["value"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_what_the_policy_read(made: Made, method: str) -> None:
    """In rollouts, training and scoring: one start token, and no thoughts for Qwen3. What all
    prompts begin with may be read by itself, and several rows as one (by Unsloth on a GPU)."""
    texts = made.texts(method)
    assert len(texts) > 20
    if made.family.bos:
        assert not any(2 * made.family.bos in text for text in texts)
        assert sum(text.startswith(made.family.bos) for text in texts) > 10
    if made.name == "qwen3":
        begun = [text.partition(ASSISTANT)[2] for text in texts]
        begun = [text for text in begun if text]
        assert len(begun) > 15
        for text in begun:
            assert text[: len(THOUGHTS)] == THOUGHTS[: len(text)]


def test_a_reply_of_dpo_ends_as_in_the_chat_template(made: Made) -> None:
    replies = [
        pair[side]
        for pair in rows(DEMO_DATA / "preferences.jsonl")[:40]
        for side in ("chosen", "rejected")
    ]
    texts = made.texts("dpo")
    actual = [reply for reply in replies if any(reply in text for text in texts)]
    assert len(actual) > 12  # those of two steps and of the held-out pairs
    for reply in actual:
        ends = {text.partition(reply)[2] for text in texts if reply in text}
        assert ends == {made.family.reply_end}, reply


def test_every_end_token_ends_a_reply(made: Made, tmp_path: Path) -> None:
    """Those of the generation settings, the tokenizer and the template; in scoring and rollouts."""
    import torch

    built = trainers.build("grpo", tmp_path, *made.overrides("grpo"))
    loaded, tokenizer, trainer = built.model, built.tokenizer, built.trainer
    assert tokenizer.eos_token == made.family.reply_end
    ends = {made.family.reply_end, made.family.eos, *made.family.ends}
    ids = set(tokenizer.convert_tokens_to_ids(sorted(ends)))
    head, evaluation = loaded.get_output_embeddings(), Evaluation(max_new_tokens=5, batch_size=2)
    for number in sorted(ids):
        head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)), requires_grad=False)
        head.bias[number] = 100.0
        (reply,) = inference.generator(loaded, tokenizer, evaluation, 0)(
            [conversation("?", PromptFormat())]
        )
        assert (reply.ids, reply.truncated) == ((number,), False)
    head.bias = None
    assert set(trainer.eos_token_ids) == set(trainer.generation_config.eos_token_id) == ids


def test_merged_weights_are_proven(made: Made, tmp_path: Path) -> None:
    requested = ["--output", str(tmp_path), "--to", "merged_16bit", *PARITY]
    assert export.main([str(made.run("grpo")), *requested]) == 0
    tokenizer = tokenizer_of(tmp_path / "merged_16bit")
    ends = read(tmp_path / "merged_16bit" / "generation_config.json")["eos_token_id"]
    wanted = {made.family.reply_end, *made.family.ends}
    assert set(tokenizer.convert_ids_to_tokens(ends)) == wanted


# --- variables of a chat template -----------------------------------------------------------------


@pytest.fixture
def qwen3(made: Made) -> Made:
    if made.name != "qwen3":
        pytest.skip("only Qwen3's template has a variable")
    return made


def test_the_data_report_counts_and_shows_the_prompt(qwen3: Made) -> None:
    report = read(qwen3.run("dpo") / "data" / "report.json")
    for example in report["examples"]:
        assert "".join(example["masked"]).endswith(ASSISTANT + THOUGHTS)
    lengths = [len(example["masked"]) for example in report["examples"]]
    assert report["tokens"]["prompt"]["min"] <= min(lengths)
    assert max(lengths) <= report["tokens"]["prompt"]["max"]


def test_a_name_that_the_template_does_not_read(qwen3: Made) -> None:
    output = r"prompt\.chat_.*: .* reads no 'enable_thinkin'\. Did you mean 'enable_thinking'"
    with pytest.raises(ConfigError, match=output):
        qwen3.main("grpo", "prompt.chat_template_kwargs={enable_thinkin: false}", "--dry-run")


@pytest.mark.parametrize("method", METHODS)
def test_another_value_is_another_run(qwen3: Made, method: str) -> None:
    with pytest.raises(ConfigError, match="enable_thinking was False, now True"):
        qwen3.main(method, "prompt.chat_template_kwargs.enable_thinking=true")


@pytest.mark.parametrize("own", [True, False])
def test_evaluate_asks_with_the_variables_of_the_run(
    qwen3: Made, own: bool, tmp_path: Path
) -> None:
    adapter = qwen3.run("grpo") / "adapter"
    given = ["--model", str(adapter), "--data", str(DEMO_DATA / "problems_test.jsonl")]
    given += ["--limit", "4", "--max-new-tokens", "4", "--output", str(tmp_path)]
    other = [] if own else ["--chat-template-kwargs", "{enable_thinking: true}"]
    with noted() as read_by_it:
        assert evaluate.main([*given, *other]) == 0
    texts = as_text(read_by_it, tokenizer_of(adapter))
    assert any("<think>" in text for text in texts) == own
    report = read(tmp_path / "report.json")
    assert report["chat_template_kwargs"] == {"enable_thinking": not own}


@pytest.mark.parametrize("method", METHODS)
def test_the_code_of_the_card_renders_the_same_prompt(qwen3: Made, method: str) -> None:
    card = (qwen3.run(method) / "README.md").read_text(encoding="utf-8")
    assert '```json\n{"enable_thinking": false}\n```' in card
    code = card.partition("```python\n")[2].partition("```")[0]
    code = code[code.index("turns = ") : code.index("reply = ")]
    tokenizer = tokenizer_of(qwen3.run(method) / "adapter")
    names: dict[str, Any] = {"tokenizer": tokenizer}
    exec(code, names)
    set_template_variables(tokenizer, {"enable_thinking": False})
    expected = render(tokenizer, names["turns"])
    assert tokenizer.decode(names["prompt"]["input_ids"][0]) == expected
    assert expected.endswith(ASSISTANT + THOUGHTS)


@pytest.mark.usefixtures("tree")
def test_llama_cpp_and_ollama_render_the_same_prompt(qwen3: Made, tmp_path: Path) -> None:
    requested = ["--output", str(tmp_path), "--to", "gguf:f16,ollama", *PARITY]
    assert export.main([str(qwen3.run("grpo")), *requested]) == 0
    (modelfile,) = tmp_path.rglob("Modelfile")
    assert f'{ASSISTANT}{THOUGHTS}"""' in modelfile.read_text(encoding="utf-8")


# --- a template without system turns --------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_system_turn_that_the_template_refuses(made: Made, method: str) -> None:
    if made.name != "gemma":
        pytest.skip("only Gemma's template takes no system turn")
    output = r"not supported\. It takes no system turn: set prompt\.system to null"
    with pytest.raises(ConfigError, match=output):
        made.main(method, "prompt.system=Réponds.", "--dry-run")
