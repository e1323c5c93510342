"""The models that an export compares: the adapter on its base, merged weights, a GGUF file.

Each renders a conversation, tokenises a text, replies greedily, and lists the most probable next
tokens at every position of a given reply. The adapter is computed in float32. A file is computed as
its users compute it: merged weights in their type, a GGUF file by llama.cpp.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from eval import Conversation
from posttrain.base.errors import ExportError
from posttrain.data.render import NONE, Variables, render, set_template_variables, token_ids
from posttrain.export.merge import generation_settings, load_tokenizer, put_adapter
from posttrain.model.inference import Draft, Writer

LISTED = 64
"""How many of the most probable next tokens are compared at each position."""
Row = dict[int, float]
"""The most probable next tokens with their log-probabilities, in nats."""


class TorchModel:
    """A model of transformers, on the GPU if there is one."""

    def __init__(self, model: Any, tokenizer: Any, variables: Variables) -> None:
        """The model's generation_config is greedy; `variables` go to the chat template."""
        import torch

        set_template_variables(tokenizer, variables)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.tokenizer = tokenizer

    def render(self, conversation: Conversation) -> str:
        """The prompt as text."""
        return render(self.tokenizer, conversation, today=True)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, including special tokens."""
        return token_ids(self.tokenizer, [text])[0]

    def greedy(self, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
        """A greedy reply to each prompt, with its end token if it ends."""
        import torch

        config = copy.copy(self.model.generation_config)
        config.max_new_tokens, config.pad_token_id = new_tokens, self.tokenizer.pad_token_id
        drafts = [Draft(prompt) for prompt in prompts]
        with torch.no_grad():
            Writer(self.model, self.model.generate, config, keep=True).write(drafts, 16)
        return [draft.reply for draft in drafts]

    def rows(self, prompt: list[int], reply: list[int]) -> list[Row]:
        """For each token of a given reply, the most probable tokens at its position."""
        import torch

        ids = torch.tensor([prompt + reply], device=self.model.device)
        with torch.no_grad():
            logits = self.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        top = logits.float().log_softmax(-1).topk(min(LISTED, logits.shape[-1]))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [dict(zip(tokens, values, strict=True)) for tokens, values in pairs]


def adapter_model(base: Path, adapter: Path, variables: Variables = NONE) -> TorchModel:
    """The adapter on its base in float32, not merged."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = load_tokenizer(adapter, base)
    model.generation_config = generation_settings(base, tokenizer)
    return TorchModel(put_adapter(model, adapter), tokenizer, variables)


def merged_model(folder: Path, variables: Variables = NONE) -> TorchModel:
    """The model in a folder, in the type of its weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return TorchModel(model, AutoTokenizer.from_pretrained(folder), variables)


class LlamaCpp:
    """A model that a llama.cpp server runs: the methods of TorchModel through its HTTP API."""

    def __init__(self, url: str, variables: Variables = NONE) -> None:
        self._client = httpx.Client(base_url=url, timeout=600, trust_env=False)
        self._variables = dict(variables)

    def render(self, conversation: Conversation) -> str:
        body = {"messages": conversation, "chat_template_kwargs": self._variables}
        return str(self._post("/apply-template", body)["prompt"])

    def tokenize(self, text: str) -> list[int]:
        body = {"content": text, "add_special": False, "parse_special": True}
        return [int(token) for token in self._post("/tokenize", body)["tokens"]]

    def greedy(self, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
        body = {"n_predict": new_tokens, "return_tokens": True}
        return [list(self._complete(prompt, body)["tokens"]) for prompt in prompts]

    def rows(self, prompt: list[int], reply: list[int]) -> list[Row]:
        """One request per token: llama.cpp lists probabilities only after a text, not inside it.
        Each request reuses the cache of the one before.

        It lists nothing where it writes half a character, so a bias, which does not affect the
        listed values, makes it write a letter.
        """
        body = {"n_predict": 1, "n_probs": LISTED, "logit_bias": [[self.tokenize("a")[0], 1e6]]}
        rows = []
        for n in range(len(reply)):
            response = self._complete(prompt + reply[:n], {**body, "cache_prompt": n > 0})
            (step,) = response["completion_probabilities"]
            rows.append({each["id"]: each["logprob"] for each in step["top_logprobs"]})
        return rows

    def _complete(self, prompt: list[int], body: dict[str, Any]) -> Any:
        # Without a cache a reply depends on its prompt alone.
        greedy = {"prompt": prompt, "temperature": 0, "cache_prompt": False}
        return self._post("/completion", {**greedy, **body})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        response = self._client.post(path, json=body)
        if not response.is_success:
            raise ExportError(f"llama.cpp refused {path}: {response.text[:300]}")
        return response.json()


Model = TorchModel | LlamaCpp
