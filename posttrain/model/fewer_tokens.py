"""Training passes over fewer tokens with the same result, for machines without a GPU.

GRPO: trl scores each completion behind a copy of its prompt. With 8 completions of 96 tokens behind
a prompt of 250, two thirds of the tokens of a step are copies. Here each different prompt is read
once, and its keys and values, with their gradients, are those of all its completions; on a GPU
Unsloth's trainer does the same. DPO: trl pads the shorter reply of a pair to the longer one, which
of the French pairs makes 1.4 times the tokens.
"""

from typing import Any

LEAST_TOKENS = 100  # of a prompt, or of padding: to compute fewer apart saves nothing


class SharedPrompts:
    """Stands in for a model in trl's `_get_per_token_logps_and_entropies`."""

    def __init__(self, model: Any, completion_tokens: int) -> None:
        self.model = model
        self.completion_tokens = completion_tokens

    def __call__(self, input_ids: Any, attention_mask: Any, labels: Any, **options: Any) -> Any:
        """The model's output for the completions, of which the log-probabilities are (rows,
        completion tokens); for rows without much to share the output of the model itself.

        Arguments are (rows, tokens): prompts, padded on the left, and completions.
        """
        import torch

        # The last token of the prompt is read with the completion, whose first token it predicts.
        end = input_ids.shape[1] - self.completion_tokens - 1
        prompts = torch.stack([input_ids[:, :end], attention_mask[:, :end]], 2)
        different, of = prompts.unique(dim=0, return_inverse=True)
        given = {"attention_mask": attention_mask, "labels": labels, **options}
        shared = end >= LEAST_TOKENS and 2 * len(different) <= len(prompts)
        if not shared or options.keys() != {"fused_lm_head"}:  # images, or experts to balance
            return self.model(input_ids=input_ids, **given)
        ids, mask = different.unbind(2)
        read = self.model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
        cache = read.past_key_values
        for layer in cache.layers:  # not by [of], whose gradient several threads add in any order
            layer.keys, layer.values = (x.index_select(0, of) for x in (layer.keys, layer.values))
        given["labels"] = labels[:, end:]
        return self.model(input_ids=input_ids[:, end:], past_key_values=cache, **given)


def can_share(model: Any) -> bool:
    """Whether a prompt can be read alone, with a gradient: all layers keep all keys and values, and
    dropout does not make copies of a prompt differ."""
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    adapters = getattr(model, "peft_config", {}).values()
    return (
        model.device.type == "cpu"
        and not model.is_gradient_checkpointing
        and kinds == {"full_attention"}
        and not any(adapter.lora_dropout for adapter in adapters)
    )


class WithoutPadding:
    """Stands in for a model in DPO's `_compute_loss`: the chosen rows, and then the rejected ones,
    are as wide as the longest of them."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: Any, attention_mask: Any, labels: Any, **options: Any) -> Any:
        """The model's output, of which every value of tokens is (rows, tokens - 1). Arguments are
        (rows, tokens): chosen, then as many rejected rows, padded on the right."""
        import torch
        from torch.nn.functional import pad

        given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if options.keys() - {"fused_lm_head", "use_cache"}:  # images, or experts to balance
            return self.model(**given, **options)
        halves = torch.arange(len(labels)).chunk(2)
        widths = [int(attention_mask[rows].any(0).nonzero().max()) + 1 for rows in halves]
        if sum(widths) > 2 * labels.shape[1] - LEAST_TOKENS:
            return self.model(**given, **options)
        outputs = [
            self.model(**{name: each[rows, :width] for name, each in given.items()}, **options)
            for rows, width in zip(halves, widths, strict=True)
        ]

        def joined(name: str) -> Any:
            """A value of every token but the first, with zeros where there is padding."""
            narrow, wide = [output[name] for output in outputs], labels.shape[1] - 1
            return torch.cat([pad(each, (0, wide - each.shape[1])) for each in narrow])

        of_tokens = [name for name, value in outputs[0].items() if value.ndim == 2]
        return type(outputs[0])(**{name: joined(name) for name in of_tokens})
