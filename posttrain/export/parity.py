"""The parity check: does an exported file behave like the model that was trained?

Merged weights are compared with the adapter on its base. A GGUF file, run by llama.cpp, is compared
with the merged weights. Two greedy texts may differ at a token where the reference has a near tie:
where its logits of both tokens are closer than twice the difference allowed for one logit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from eval import Conversation
from posttrain.base.errors import ExportError
from posttrain.data.render import NONE, Variables, render, token_ids
from posttrain.export.float32 import Reference, merged_reference
from posttrain.export.merge import stored_dtype
from posttrain.export.proof import Check, at_most
from posttrain.export.texts import Texts, strings, template_cases
from posttrain.model.llama_server import serve
from posttrain.model.server import server_generator
from posttrain.settings import Evaluation
from posttrain.settings.export import Parity
from rewards.answer import extract_last, extract_tagged

SCORED_TEXTS = 6  # texts for the perplexity: each of their tokens is a request to llama.cpp
ARITHMETIC_TEXTS = 6  # texts that are also computed in 16 bits


@dataclass(frozen=True)
class Greedy:
    """Greedy replies of a reference model, with the logits of each token."""

    prompts: list[list[int]]
    replies: list[list[int]]
    logits: list[Any]
    """One (tokens, V) float32 tensor a reply."""
    tokenizer: Any


def greedy_texts(reference: Reference, conversations: Sequence[Conversation], n: int) -> Greedy:
    """The reference's greedy replies of at most `n` tokens."""
    prompts = [reference.prompt(conversation) for conversation in conversations]
    replies = reference.greedy(prompts, n)
    pairs = zip(prompts, replies, strict=True)
    logits = [reference.logits(prompt, reply) for prompt, reply in pairs]
    return Greedy(prompts, replies, logits, reference.tokenizer)


def learnt_change(adapter: Reference, known: Greedy) -> float:
    """Sum of squares of the change that the adapter makes to the logits of its greedy replies."""
    total = 0.0
    with adapter.model.disable_adapter():
        for prompt, reply, logits in zip(known.prompts, known.replies, known.logits, strict=True):
            total += float((adapter.logits(prompt, reply) - logits).double().square().sum())
    return total


def check_merged(
    known: Greedy, learnt: float, merged: Path, texts: Texts, limits: Parity
) -> list[Check]:
    """Compare merged weights, loaded from their folder, with the adapter on its base.

    `known` and `learnt` are the results of greedy_texts and learnt_change for that adapter.
    """
    loaded = merged_reference(merged, texts.variables)
    largest, squares, spread = 0.0, 0.0, 0.0
    for prompt, reply, logits in zip(known.prompts, known.replies, known.logits, strict=True):
        difference = (loaded.logits(prompt, reply) - logits).double()
        largest = max(largest, float(difference.abs().max()))
        squares += float(difference.square().sum())
        # A constant added to all logits of a token has no effect, so the mean is taken per token.
        spread += float((logits - logits.mean(-1, keepdim=True)).double().square().sum())
    lost = math.sqrt(squares / learnt) if learnt else 0.0
    replies = loaded.greedy(known.prompts, limits.new_tokens)
    arithmetic = _arithmetic_difference(loaded, known, stored_dtype(merged))
    cases, written = template_cases(texts, known.tokenizer), strings(known.tokenizer)
    return [
        *same_text(
            [render(loaded.tokenizer, case) for case in cases],
            [render(known.tokenizer, case) for case in cases],
            token_ids(loaded.tokenizer, written),
            token_ids(known.tokenizer, written),
        ),
        at_most(
            "relative_logit_difference",
            math.sqrt(squares / spread),
            limits.max_relative_logit_difference,
        ),
        at_most("max_logit_difference", largest, limits.max_logit_difference),
        at_most("learning_lost", lost, limits.max_learning_lost),
        at_most("arithmetic_difference", arithmetic, limits.max_arithmetic_difference),
        greedy_check(known, replies, 2 * limits.max_logit_difference),
    ]


def _arithmetic_difference(model: Reference, known: Greedy, dtype: str) -> float:
    """How much computing in `dtype` changes a model's logits: root mean square, divided by their
    standard deviation; infinity if it is not finite. The model stays in that type."""
    texts = list(zip(known.prompts, known.replies, strict=True))[:ARITHMETIC_TEXTS]
    exact = [model.logits(prompt, reply) for prompt, reply in texts]
    model.compute_in(dtype)
    squares, spread = 0.0, 0.0
    for (prompt, reply), logits in zip(texts, exact, strict=True):
        squares += float((model.logits(prompt, reply) - logits).double().square().sum())
        spread += float((logits - logits.mean(-1, keepdim=True)).double().square().sum())
    return math.sqrt(squares / spread) if math.isfinite(squares) else math.inf


def check_gguf(
    gguf: Path, kind: str, merged: "MergedAnswers", texts: Texts, limits: Parity
) -> list[Check]:
    """Compare a GGUF file, run by a llama.cpp server, with the merged weights it was made from."""
    with serve(gguf, context=merged.context(limits)) as url:
        server = LlamaCpp(url, texts.variables)
        tokenizer = merged.reference.tokenizer
        cases = template_cases(texts, tokenizer)
        prompts = [render(tokenizer, case, today=True) for case in cases]
        written = [*strings(tokenizer), *prompts]
        checks = same_text(
            [server.render(case) for case in cases],
            prompts,
            [server.tokenize(text) for text in written],
            token_ids(tokenizer, written),
        )
        if kind in ("f16", "bf16"):
            return checks + _check_16_bit(server, merged.texts, limits)
        return checks + _check_quantised(server, url, kind, merged, texts, limits)


class MergedAnswers:
    """The answers of the merged weights, computed once for all GGUF files of an export."""

    def __init__(self, merged: Path, texts: Texts, limits: Parity) -> None:
        self.reference = merged_reference(merged, texts.variables)
        self.texts = greedy_texts(self.reference, texts.conversations, limits.new_tokens)
        self._problems, self._limits = texts.problems, limits
        self._numbers: list[Any] | None = None

    def numbers(self) -> list[Any]:
        """The last number of the answer to each problem."""
        if self._numbers is None:
            prompts = [self.reference.prompt(problem) for problem in self._problems]
            replies = self.reference.greedy(prompts, self._limits.answer_tokens)
            self._numbers = [last_number(self.reference.text(reply)) for reply in replies]
        return self._numbers

    def context(self, limits: Parity) -> int:
        """The number of tokens of the longest request, with its reply."""
        prompts = [*self.texts.prompts, *map(self.reference.prompt, self._problems)]
        return max(map(len, prompts)) + max(limits.new_tokens, limits.answer_tokens) + 8


def _check_16_bit(server: "LlamaCpp", known: Greedy, limits: Parity) -> list[Check]:
    differences = [0.0]
    replies = []
    for prompt, reply, logits in zip(known.prompts, known.replies, known.logits, strict=True):
        tokens, log_probs = server.greedy(prompt, limits.new_tokens)
        replies.append(tokens)
        expected = logits.log_softmax(-1)
        for place, (token, log_prob) in enumerate(zip(tokens, log_probs, strict=True)):
            if place == len(reply) or token != reply[place]:
                break
            differences.append(abs(log_prob - float(expected[place, token])))
    return [
        at_most("max_log_prob_difference", max(differences), limits.max_log_prob_difference),
        greedy_check(known, replies, 2 * limits.max_log_prob_difference),
    ]


def _check_quantised(
    server: "LlamaCpp", url: str, kind: str, merged: MergedAnswers, texts: Texts, limits: Parity
) -> list[Check]:
    known = merged.texts
    # Evenly spaced, so that both languages and the problems are among them.
    chosen = range(0, len(known.prompts), max(1, len(known.prompts) // SCORED_TEXTS))
    change, tokens = 0.0, 0
    for i in chosen:
        reply, logits = known.replies[i], known.logits[i].log_softmax(-1)
        log_probs = server.log_probs(known.prompts[i], reply)
        change += sum(float(logits[n, t]) - log_probs[n] for n, t in enumerate(reply))
        tokens += len(reply)
    limit = getattr(limits, f"max_perplexity_change_{kind}")
    perplexity = at_most("perplexity_change", math.exp(min(change / tokens, 50.0)) - 1, limit)
    if not texts.problems:
        return [perplexity]
    evaluation = Evaluation(max_new_tokens=limits.answer_tokens, batch_size=1)
    ask = server_generator(url, evaluation, seed=0, variables=texts.variables)
    answers = ask(texts.problems)
    numbers = [last_number(answer.text) for answer in answers]
    differing = sum(a != b for a, b in zip(numbers, merged.numbers(), strict=True))
    return [
        perplexity,
        at_most(
            "answer_disagreement",
            differing / len(numbers),
            getattr(limits, f"max_answer_disagreement_{kind}"),
        ),
    ]


def same_text(
    prompts: list[str], known: list[str], ids: list[list[int]], known_ids: list[list[int]]
) -> list[Check]:
    """Count the prompts that are rendered differently and the texts tokenised differently."""
    rendered = sum(a != b for a, b in zip(prompts, known, strict=True))
    tokenised = sum(a != b for a, b in zip(ids, known_ids, strict=True))
    return [
        at_most("chat_template", rendered, 0, of=len(prompts)),
        at_most("tokenisation", tokenised, 0, of=len(ids)),
    ]


def greedy_check(known: Greedy, replies: list[list[int]], margin: float) -> Check:
    """Count the greedy texts that differ from the reference's, except at a near tie."""
    wrong = 0
    for reference, logits, reply in zip(known.replies, known.logits, replies, strict=True):
        for place, (expected, token) in enumerate(zip(reference, reply, strict=False)):
            if token != expected:
                wrong += float(logits[place, expected] - logits[place, token]) > margin
                break
    return at_most("greedy_text", wrong, 0, of=len(replies))


def last_number(text: str) -> Any:
    """The number in the answer tag, else the last number of the text."""
    tagged = extract_tagged(text)
    return extract_last(text) if tagged is None else tagged


class LlamaCpp:
    """The parts of a llama.cpp server's API that no OpenAI-style server has."""

    def __init__(self, url: str, variables: Variables = NONE) -> None:
        """`variables` are those of the chat template, prompt.chat_template_kwargs."""
        self._client = httpx.Client(base_url=url, timeout=600, trust_env=False)
        self._variables = dict(variables)

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        response = self._client.post(path, json=body)
        if not response.is_success:
            raise ExportError(f"llama.cpp refused {path}: {response.text[:300]}")
        return response.json()

    def tokenize(self, text: str) -> list[int]:
        body = {"content": text, "add_special": False, "parse_special": True}
        return [int(token) for token in self._ask("/tokenize", body)["tokens"]]

    def render(self, conversation: Conversation) -> str:
        body = {"messages": conversation, "chat_template_kwargs": self._variables}
        return str(self._ask("/apply-template", body)["prompt"])

    def greedy(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        """A greedy reply and the log-probability of each of its tokens."""
        answer = self._complete(prompt, new_tokens)
        steps = answer["completion_probabilities"]
        return [step["id"] for step in steps], [step["logprob"] for step in steps]

    def log_probs(self, prompt: list[int], reply: list[int]) -> list[float]:
        """Log-probability of each token of a given reply. A logit bias forces the server to choose
        the token; the log-probability that it reports is without the bias."""
        values = []
        for place, token in enumerate(reply):
            forced = {"logit_bias": [[token, 1e6]]}
            # The first anew, so that nothing depends on what was asked before.
            answer = self._complete(prompt + reply[:place], 1, cache_prompt=place > 0, **forced)
            (step,) = answer["completion_probabilities"]
            if step["id"] != token:
                raise ExportError(f"llama.cpp answered token {step['id']} where {token} was forced")
            values.append(float(step["logprob"]))
        return values

    def _complete(self, prompt: list[int], new_tokens: int, **options: Any) -> Any:
        body = {"prompt": prompt, "n_predict": new_tokens, "temperature": 0, "n_probs": 1}
        return self._ask("/completion", {"cache_prompt": True, **body, **options})
