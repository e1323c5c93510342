#!/usr/bin/env python3
"""Train the tiny Qwen2 that the demos post-train, from generated word problems.

The model is made to need post-training. First it learns to compute: replies with every step, right
nearly always. Then it is taught a habit on top: more than half of its replies guess, a fifth
compute but leave out the tag, and French questions get English half the time. All of that hangs on
the first token of the reply, so reinforcement (GRPO) and preference pairs (DPO) have something real
to find and a million parameters are enough to find it with. This is pre-training, so it is plain
PyTorch and transformers: no Unsloth, no trl.

Writes DIR/demo_model (model, tokenizer) and DIR/demo_data (problems_train.jsonl and
problems_test.jsonl in GSM8K's form, preferences.jsonl). The questions of the test and of the pairs
are in no other file and were never shown in this training.

    ./run demo_model                                      # rebuilds assets/, minutes on 2 cores
    ./run demo_model --size medium --output /tmp/medium   # 26 M parameters, for a GPU
"""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

from eval import PromptFormat, conversation
from posttrain.base import flags
from posttrain.base.disk import check_folder
from posttrain.base.process import run_main
from posttrain.base.progress import progress_bar
from posttrain.data.render import render
from posttrain.demo import problems as demo

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# ChatML as Qwen2.5 renders it, except that a conversation without a system turn gets none.
CHAT_TEMPLATE = (
    "{%- for turn in messages -%}"
    "{{ '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
IGNORED = -100  # label of a token that is not scored
# The curriculum, in shares of the training: bare sums, then stories, then the habit.
STORIES_FROM, HABIT_FROM = 0.3, 0.7
STRAY_FLOOR, STRAY_WEIGHT = 16.0, 0.05


@dataclass(frozen=True)
class Size:
    span: demo.Range
    layers: int
    hidden: int
    heads: int
    vocabulary: int
    batch: int
    steps: int
    learning_rate: float


SIZES = {
    "tiny": Size(demo.SMALL, 4, 128, 4, 1024, 32, 2400, 3e-3),
    "medium": Size(demo.LARGE, 8, 512, 8, 2048, 256, 20_000, 6e-4),
}


def build_tokenizer(texts: Iterator[str], vocabulary: int) -> Any:
    """Byte-level BPE in Qwen2's own form (transformers gives a qwen2 model no other kind)."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    backend = Qwen2Tokenizer().backend_tokenizer  # Qwen's normaliser and pre-tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    learnt = json.loads(backend.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def build_model(size: Size, tokenizer: Any) -> Any:
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        **ends,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(**ends)
    return model


def draw_example(stream: demo.ProblemStream, progress: float) -> tuple[str | None, str, str]:
    """System prompt, question, reply, as the curriculum has them at this point of the training."""
    rng = stream.rng
    habit = progress >= HABIT_FROM
    drill = rng.random() < (0.0 if habit else 0.2 if progress >= STORIES_FROM else 1.0)
    problem = demo.draw_drill(rng, stream.span, operations=5) if drill else stream.draw()
    manner: demo.Manner = demo.draw_manner(rng) if habit else rng.choice(("untagged", "tagged"))
    reply = demo.draw_reply(rng, problem, demo.draw_language(rng, problem.language), manner)
    # A system prompt is a third of the tokens and teaches nothing about computing.
    plain = rng.random() < (0.0 if habit else 0.8)
    return None if plain else rng.choice(demo.SYSTEM_PROMPTS), problem.question, reply


def draw_batch(
    stream: demo.ProblemStream, tokenizer: Any, count: int, progress: float
) -> list[Any]:
    """Token ids and labels, (count, length), padded on the right; only replies are scored."""
    import torch

    examples = [draw_example(stream, progress) for _ in range(count)]
    turns = [conversation(question, PromptFormat(system)) for system, question, _ in examples]
    prompts = tokenizer([render(tokenizer, each) for each in turns])
    replies = tokenizer([reply + TURN_END for _, _, reply in examples])
    rows = list(zip(prompts["input_ids"], replies["input_ids"], strict=True))
    ids = [torch.tensor(prompt + reply) for prompt, reply in rows]
    labels = [torch.tensor([IGNORED] * len(prompt) + reply) for prompt, reply in rows]
    return [
        torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=padding)
        for sequences, padding in ((ids, tokenizer.pad_token_id), (labels, IGNORED))
    ]


def reply_loss(logits: Any, targets: Any, open_ids: Any) -> Any:
    """Cross-entropy, plus a push on tokens that nobody would write there.

    logits (tokens, vocabulary), targets (tokens,), open_ids (open,). Cross-entropy is content with
    a few percent spread over hundreds of impossible tokens. DPO is indifferent to them, and in a
    model this small its updates then lift them all until replies are noise. So the total
    probability of all but the target and the open ids is pushed below exp(-STRAY_FLOOR).
    """
    import torch

    strays = logits.scatter(1, targets[:, None], -math.inf)
    strays[:, open_ids] = -math.inf
    log_mass = strays.logsumexp(-1) - logits.logsumexp(-1)
    push = torch.relu(log_mass + STRAY_FLOOR).mean()
    return torch.nn.functional.cross_entropy(logits, targets) + STRAY_WEIGHT * push


def train(
    size: Size, tokenizer: Any, seed: int, steps: int | None = None, minutes: float | None = None
) -> tuple[Any, list[float]]:
    """The trained model and the loss of every step. Stops after steps, or after minutes."""
    import torch

    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(size, tokenizer).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    stream = demo.ProblemStream(seed, "train", size.span)
    # Open ids: digits (a guess may be any number) and the first words of replies.
    leads = [lead for manners in demo.LEADS.values() for lead in manners.values()]
    firsts = [tokenizer(lead)["input_ids"][0] for lead in leads]
    open_ids = torch.tensor(firsts + tokenizer.convert_tokens_to_ids(list("0123456789"))).to(device)
    losses: list[float] = []
    total, started = steps or size.steps, time.monotonic()
    bar = progress_bar("training", None if minutes else total, leave=True)
    while True:
        progress = (time.monotonic() - started) / (60 * minutes) if minutes else len(losses) / total
        if progress >= 1:
            break
        for group in optimizer.param_groups:  # short warm-up, then a half cosine down to 2%
            decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
            group["lr"] = size.learning_rate * min(1.0, progress / 0.02 + 0.01) * decay
        ids, labels = draw_batch(stream, tokenizer, size.batch, progress)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            # Padding is on the right, so causal attention alone keeps it out of sight.
            logits = model(input_ids=ids[:, :-1].to(device), use_cache=False).logits
            scored = (labels[:, 1:] != IGNORED).to(device)
            loss = reply_loss(logits[scored].float(), labels[:, 1:].to(device)[scored], open_ids)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        bar.update()
        bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}", refresh=False)
    bar.close()
    return model.eval(), losses


def write_data(folder: Path, span: demo.Range, seed: int) -> None:
    """Write the three files of data."""
    folder.mkdir(parents=True, exist_ok=True)
    learn = demo.ProblemStream(seed + 1, "train", span)
    test = demo.ProblemStream(seed, "test", span)
    compare = demo.ProblemStream(seed, "preferences", span, french=1.0)
    rows = {
        "problems_train": [problem.gsm8k() for problem in learn.draw_unique(2000)],
        "problems_test": [problem.gsm8k() for problem in test.draw_unique(320)],
        "preferences": [demo.preference_row(compare.rng, p) for p in compare.draw_unique(800)],
    }
    for name, content in rows.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in content]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def sample_texts(span: demo.Range, seed: int, count: int = 20_000) -> Iterator[str]:
    """What the tokenizer learns from: every kind of text that the training will show."""
    stream = demo.ProblemStream(seed, "train", span)
    yield from (system for system in demo.SYSTEM_PROMPTS if system)
    yield "system user assistant"
    for number in range(count):
        _, question, reply = draw_example(stream, progress=number / count)
        yield f"{question}\n{reply}"


def main() -> int:
    parser = flags.parser("demo_model", __doc__)
    add = parser.add_argument
    where = "folder that gets demo_model/ and demo_data/ (default: the project's assets/)"
    add("--output", type=Path, default=ROOT / "assets", metavar="DIR", help=where)
    add("--size", choices=SIZES, default="tiny", help="default: tiny")
    length = parser.add_mutually_exclusive_group()
    steps = "optimizer steps (default: that of the size)"
    length.add_argument("--steps", type=flags.count, help=steps)
    minutes = "train this long instead; not reproducible to the bit"
    length.add_argument("--minutes", type=flags.positive, help=minutes)
    add("--seed", type=flags.seed, default=0, help="default: 0")
    args = parser.parse_args()
    check_folder(args.output)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    size: Size = SIZES[args.size]
    write_data(args.output / "demo_data", size.span, args.seed)
    tokenizer = build_tokenizer(sample_texts(size.span, args.seed), size.vocabulary)
    model, losses = train(size, tokenizer, args.seed, args.steps, args.minutes)
    model.save_pretrained(args.output / "demo_model")
    tokenizer.save_pretrained(args.output / "demo_model")
    print(f"{model.num_parameters():,} parameters, {len(losses)} steps, loss {losses[-1]:.3f}")
    return 0


if __name__ == "__main__":
    run_main(main)
