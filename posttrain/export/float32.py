"""The reference of the parity check: greedy replies and logits of a model in transformers.

Everything is computed in float32, so that a difference between two models comes from their weights
and not from 16-bit arithmetic.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import Conversation
from posttrain.data.render import NONE, Variables, render, set_template_variables, token_ids
from posttrain.export.merge import load_tokenizer, put_adapter
from posttrain.model.pretrained import end_tokens


class Reference:
    """A model with its tokenizer, on the GPU where there is one."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        import torch

        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.tokenizer = tokenizer
        self.ends = sorted(end_tokens(model.generation_config, tokenizer))

    def prompt(self, conversation: Conversation) -> list[int]:
        return token_ids(self.tokenizer, [render(self.tokenizer, conversation)])[0]

    def greedy(self, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
        """Greedy replies, each with its end token if it has one; 16 prompts at a time."""
        import torch
        from transformers import GenerationConfig

        padding = self.tokenizer.pad_token_id
        padding = self.ends[0] if padding is None else padding
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=new_tokens,
            eos_token_id=self.ends,
            pad_token_id=padding,
        )
        replies = []
        for start in range(0, len(prompts), 16):
            batch = prompts[start : start + 16]
            width = max(map(len, batch))
            ids = torch.tensor([[padding] * (width - len(p)) + p for p in batch])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
            with torch.no_grad():
                output = self.model.generate(
                    input_ids=ids.to(self.model.device),
                    attention_mask=mask.to(self.model.device),
                    generation_config=settings,
                )
            replies += [self._until_end(row) for row in output[:, width:].tolist()]
        return replies

    def _until_end(self, reply: list[int]) -> list[int]:
        for place, token in enumerate(reply):
            if token in self.ends:
                return reply[: place + 1]
        return reply

    def logits(self, prompt: list[int], reply: list[int]) -> Any:
        """Logits, (len(reply), V), float32 on the CPU: row i is the prediction of token i."""
        import torch

        ids = torch.tensor([prompt + reply], device=self.model.device)
        with torch.no_grad():
            logits = self.model(input_ids=ids, use_cache=False).logits
        return logits[0, len(prompt) - 1 : -1].float().cpu()

    def compute_in(self, dtype: str) -> None:
        """Compute in another type from now on, as after loading the model in that type: only the
        weights change, and rotary frequencies stay in float32."""
        import torch

        for weight in self.model.parameters():
            weight.data = weight.data.to(getattr(torch, dtype))

    def text(self, reply: list[int]) -> str:
        text: str = self.tokenizer.decode(reply, skip_special_tokens=True)
        return text


def adapter_reference(base: Path, adapter: Path, variables: Variables = NONE) -> Reference:
    """The base model in float32 with the adapter, which is not merged.

    `variables` are those of its chat template, prompt.chat_template_kwargs.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = load_tokenizer(adapter, base)
    set_template_variables(tokenizer, variables)
    return Reference(put_adapter(model, adapter), tokenizer)


def merged_reference(folder: Path, variables: Variables = NONE) -> Reference:
    """The model in a folder, loaded in float32; `variables` as of adapter_reference."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_template_variables(tokenizer, variables)
    return Reference(model, tokenizer)
