"""The embedded model and its data: small, genuine, reproducible, and with a habit to unlearn."""

import dataclasses
import json
import math
import operator
import random
import re
from pathlib import Path
from typing import Any

import pytest

from eval.replies import detect
from posttrain.demo import problems as demo_problems
from posttrain.demo.problems import LEADS, ProblemStream, split_of
from scripts import demo_model
from tests.helpers import ROOT

# torchao, which transformers imports, has strings that warn whenever its bytecode is not cached.
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")

MODEL, DATA = ROOT / "assets" / "demo_model", ROOT / "assets" / "demo_data"
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)\.")


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL).eval()


def manner_of(reply: str) -> tuple[str, str]:
    for language, leads in LEADS.items():
        for manner, lead in leads.items():
            if reply.startswith(lead):
                return language, manner
    raise AssertionError(f"no known lead: {reply!r}")


def test_tokenizer_gives_any_text_back(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = "1\u202f234,5 − 7\u00a0% = … naïve Œuvre «ça»\r\n\n\t 1,234.50$ 日本語 😀 \x00\x7f\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == ids
    assert again.chat_template == tokenizer.chat_template


def test_tokenizer_and_template_have_the_form_of_qwen2(tokenizer: Any, model: Any) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert type(tokenizer).__name__ == "Qwen2Tokenizer"
    assert set(ByteLevel.alphabet()) <= set(tokenizer.get_vocab())  # every byte
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.config.eos_token_id == tokenizer.eos_token_id
    written = model.generation_config
    ends = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert (written.eos_token_id, written.pad_token_id, written.do_sample) == (*ends, None)
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    assert len(tokenizer("<|im_start|>a<|im_end|><|endoftext|>")["input_ids"]) == 4
    texts = zip(("system", "user", "assistant"), "SUA", strict=True)
    turns = [{"role": role, "content": text} for role, text in texts]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n"
    )
    prompt = tokenizer.apply_chat_template(turns[1:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"


def test_no_question_is_in_two_places() -> None:
    questions = {
        name: [row["question"] for row in read(f"problems_{name}")] for name in ("train", "test")
    }
    questions["preferences"] = [row["prompt"] for row in read("preferences")]
    for split, texts in questions.items():
        assert len(set(texts)) == len(texts)
        assert {split_of(text) for text in texts} == {split}
    # What the model was trained on: drills are no questions, stories are all of the train split.
    stream = ProblemStream(0, "train", demo_problems.SMALL)
    assert {split_of(stream.draw().question) for _ in range(2000)} == {"train"}
    assert len(questions["test"]) >= 300


def test_golds_follow_from_the_steps_and_the_steps_from_the_question() -> None:
    for row in read("problems_train") + read("problems_test"):
        working, gold = row["answer"].split("\n#### ")
        steps = STEP.findall(working)
        assert " ".join(f"{a}{sign}{b}={c}." for a, sign, b, c in steps) == working
        used: list[str] = []
        for index, (left, sign, right, result) in enumerate(steps):
            assert OPERATORS[sign](int(left), int(right)) == int(result)
            if index:
                assert left == steps[index - 1][3]
            used += [right] if index else [left, right]
        assert steps[-1][3] == gold
        assert re.findall(r"\d+", row["question"]) == used


def test_pairs_differ_in_language_and_in_nothing_else(tokenizer: Any) -> None:
    rows = read("preferences")
    manners: dict[str, list[str]] = {"chosen": [], "rejected": []}
    for row in rows:
        for side, language in (("chosen", "fr"), ("rejected", "en")):
            spoken, manner = manner_of(row[side])
            assert spoken == language == detect(row[side])
            manners[side].append(manner)
    spread = math.sqrt(len(rows))
    for length in (len, lambda text: len(tokenizer(text)["input_ids"])):
        signs = [length(row["chosen"]) - length(row["rejected"]) for row in rows]
        longer, shorter = sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs)
        assert abs(longer - shorter) < 3 * spread  # a sign test would not reject
        assert min(longer, shorter) > 0.2 * len(rows)
    for manner, share in demo_problems.HABIT.items():
        for side in manners:
            assert abs(manners[side].count(manner) / len(rows) - share) < 0.06


def test_data_is_what_the_generator_writes(tmp_path: Path) -> None:
    demo_model.write_data(tmp_path, demo_problems.SMALL, seed=0)
    committed, written = ({p.name: p.read_bytes() for p in f.iterdir()} for f in (DATA, tmp_path))
    assert committed == written
    for folder, limit in ((DATA, 1_500_000), (MODEL, 5_000_000)):
        assert sum(path.stat().st_size for path in folder.iterdir()) < limit


def test_replies_that_compute_are_right() -> None:
    rng = random.Random(1)
    stream = ProblemStream(2, "train", demo_problems.LARGE)
    for _ in range(300):
        problem = stream.draw()
        tagged = demo_problems.draw_reply(rng, problem, "fr", "tagged")
        assert tagged.endswith(f"\n<answer>{problem.answer}</answer>")
        untagged = demo_problems.draw_reply(rng, problem, "en", "untagged")
        assert untagged.endswith(f" {problem.answer}.") and "<" not in untagged
        drill = demo_problems.draw_drill(rng, demo_problems.SMALL, 4)
        assert len(drill.steps) == 4 and STEP.findall(drill.working)[-1][3] == str(drill.answer)


def test_a_few_steps_reduce_the_loss_and_repeat_themselves() -> None:
    size = dataclasses.replace(demo_model.SIZES["tiny"], batch=2)
    tokenizer = demo_model.build_tokenizer(demo_model.sample_texts(size.span, 0, 300), 600)
    trained, losses = demo_model.train(size, tokenizer, seed=0, steps=6)
    assert trained.config.vocab_size == len(tokenizer)
    assert sum(losses[-2:]) < sum(losses[:2]) - 1.0
    assert demo_model.train(size, tokenizer, seed=0, steps=6)[1] == losses
