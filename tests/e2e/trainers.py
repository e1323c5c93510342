"""The policy and the trainer of a demo, as its script makes them, for tests that look inside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import Conversation, PromptFormat, conversation
from eval.gsm8k import SYSTEM
from eval.preference import Pair
from posttrain.data.demonstrations import load_demonstrations
from posttrain.data.pairs import load_pair_set
from posttrain.data.problems import load_evaluation, load_problems
from posttrain.model import policy
from posttrain.run.folder import RunFolder
from posttrain.settings import ProblemColumns, Source
from posttrain.train.stop import StopRequest
from posttrain.train.watch import Watch
from scripts import dpo, grpo, sft
from tests.helpers import DEMO_DATA, DEMO_MODEL, demo_settings

TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
"""A shape for `make_qwen` of which the vocabulary is nearly all."""


@dataclass(frozen=True)
class Built:
    trainer: Any
    model: Any
    tokenizer: Any
    settings: Any
    rows: list[Any]
    """What it trains on: pairs, problems or demonstrations."""
    run: RunFolder

    def watch(self) -> None:
        """Watch the trainer, as the scripts do."""
        Watch(self.trainer, self.settings, self.run, StopRequest(None))


def load(settings: Any) -> tuple[Any, Any]:
    """The policy and its tokenizer."""
    return policy.load(settings.model, settings.lora, settings.training, verbose=False)


def rows_of(method: str, settings: Any) -> list[Any]:
    """The rows to train on."""
    if method == "grpo":
        return load_problems(settings.data)[0]
    of_kind: Any = {"dpo": load_pair_set, "sft": load_demonstrations}[method]
    return list(of_kind(settings.data, settings.prompt).train)


def requests(count: int) -> list[Conversation]:
    """The first problems of the demo's test data, as a model is prompted with them."""
    source = Source(path=str(DEMO_DATA / "problems_test.jsonl"), limit=count)
    problems = load_evaluation(source, ProblemColumns())
    return [conversation(problem.question, PromptFormat(SYSTEM["en"])) for problem in problems]


def move(model: Any, std: float = 0.05) -> None:
    """Noise on the adapter, whose B is zero at first: it then changes what the model says."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(std * torch.randn_like(weight))


def plain(adapter: Path | None = None, **options: Any) -> Any:
    """The demo model, with an adapter, by transformers and peft alone; in float32 by default."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    options = {"dtype": torch.float32, **options}
    base = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, **options)
    if adapter is None:
        return base.eval()
    model = PeftModel.from_pretrained(base, adapter).eval()
    return model.double() if options["dtype"] == torch.float64 else model


def token_log_probs(model: Any, prompt: list[int], reply: list[int]) -> Any:
    """Of each token of a reply, of shape (n,)."""
    import torch

    with torch.no_grad():
        scores = model(torch.tensor([prompt + reply])).logits[0]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(-1)
    return scores[len(prompt) - 1 : -1].gather(1, torch.tensor(reply)[:, None])[:, 0]


def log_prob(model: Any, tokenizer: Any, pair: Pair, reply: str) -> float:
    """Of a reply to a pair's prompt and the end of sequence after it."""
    prompt = tokenizer.apply_chat_template(
        list(pair.prompt), add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    ids = [*tokenizer(reply)["input_ids"], tokenizer.eos_token_id]
    return float(token_log_probs(model, prompt, ids).sum())


def build(
    method: str,
    folder: Path,
    *overrides: str,
    count: int | None = 16,
    rewards: dict[str, Any] | None = None,
) -> Built:
    """The trainer on the first `count` rows, in `folder`/run; GRPO's with its rewards or others."""
    settings = demo_settings(method, *overrides)
    model, tokenizer = load(settings)
    rows = rows_of(method, settings)[:count]
    run = RunFolder(folder / "run")
    run.open(fresh=False)
    given = (model, tokenizer, rows, settings)
    if method == "grpo":
        functions = rewards or grpo.load_rewards(settings, rows[0])
        trainer, _ = grpo.build_trainer(*given, functions, run)
    else:
        script: Any = {"dpo": dpo, "sft": sft}[method]
        trainer, _ = script.build_trainer(*given, run)
    return Built(trainer, model, tokenizer, settings, rows, run)


def logged(trainer: Any) -> list[dict[str, Any]]:
    """What the trainer logged of each step."""
    return [row for row in trainer.state.log_history if "loss" in row]
