"""Check the model that a run names before its weights are loaded, in a dry run too.

The model is built from its config on torch's meta device, which holds no weights and takes a
fraction of a second: its layers and the rows of its embedding are those of the loaded model.
"""

from pathlib import Path
from typing import Any

from eval import PromptFormat, PromptLike, conversation
from posttrain.base.errors import ConfigError, did_you_mean, first_line, hub_errors
from posttrain.base.paths import here_or_project
from posttrain.data.render import limit_token_ids, render, token_lengths
from posttrain.model import adapter
from posttrain.model.pretrained import check_files, local_or_hub
from posttrain.settings import Lora, Model, TrainingSettings, adapters


def refuse_adapter(name: str) -> None:
    """Raise ConfigError if `model.name` is an adapter or run folder. Needs no torch."""
    folder = here_or_project(name)
    for path, shown in ((folder, name), (folder / "adapter", f"{name.rstrip('/')}/adapter")):
        if (path / adapters.CONFIG).is_file():
            raise _is_adapter(name, shown, path)
    if (folder / "config.yaml").is_file() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"model.name: '{name}' is a run folder without an adapter: its training is not "
            "finished. Run its training command again to finish it, or name a model"
        )


def _is_adapter(name: str, shown: str, folder: Path) -> ConfigError:
    kind = "an adapter" if shown == name else "a run folder with an adapter"
    return ConfigError(
        f"model.name: '{name}' is {kind}, not a model. To train on from it, set model.adapter: "
        f"{shown} (its base model is {adapters.read_adapter(folder).get(adapters.BASE)})"
    )


def check_model(settings: TrainingSettings, tokenizer: Any) -> None:
    """Raise ConfigError where layers, `training.extra` or tokens do not fit the model. From now on
    render.token_ids refuses ids that the model has no embedding for."""
    model, lora = settings.model, settings.lora
    skeleton = _skeleton(model)
    check_files(Path(local_or_hub(model.name)))
    if skeleton is None:
        return
    if model.adapter:
        adapter.check_weights(adapters.find_adapter(model.adapter), lora, skeleton)
    _check_layers(skeleton, lora, model.name)
    _check_extra(skeleton.config.get_text_config(), settings.training.extra, model.name)
    rows = skeleton.get_input_embeddings().weight.shape[0]
    limit_token_ids(tokenizer, rows, f"model.name: '{model.name}'")


def _skeleton(model: Model) -> Any:
    """The model without weights; None where it is of no class of causal language models."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import find_adapter_config_file

    name = local_or_hub(model.name)
    try:
        config = AutoConfig.from_pretrained(name, revision=model.revision, trust_remote_code=False)
    except hub_errors(ValueError) as error:
        if path := find_adapter_config_file(name, revision=model.revision):
            raise _is_adapter(model.name, model.name, Path(path).parent) from None
        raise ConfigError(
            f"model.name: cannot read the config of '{name}': {first_line(error)}"
        ) from None
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError:  # for Unsloth to load in another way, or to refuse
        return None


def _check_extra(config: Any, extra: dict[str, Any], name: str) -> None:
    if extra.get("cast_lm_head_to_fp32") and config.tie_word_embeddings:
        raise ConfigError(
            f"training.extra.cast_lm_head_to_fp32: the output layer of '{name}' is its embedding, "
            "which trl cannot cast under an adapter; leave it out"
        )
    if extra.get("router_aux_loss_coef") and not hasattr(config, "output_router_logits"):
        raise ConfigError(
            f"training.extra.router_aux_loss_coef: '{name}' is not a mixture of experts, so it has "
            "no router to balance; leave it out"
        )


def _check_layers(skeleton: Any, lora: Lora, name: str) -> None:
    """Check lora.target_modules as peft matches them: a layer's name or its end after a dot."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    takes_lora = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)
    modules = {name: module for name, module in skeleton.named_modules() if name}
    layers = {name for name, module in modules.items() if isinstance(module, takes_lora)}
    parameters = {name.rpartition(".")[2] for name, _ in skeleton.named_parameters()}
    if "gate_up_proj" in parameters:  # experts of a mixture, in one parameter
        parameters |= {"gate_proj", "up_proj"}
    for target in lora.target_modules:
        if target.rpartition(".")[2] in ("embed_tokens", "lm_head"):
            raise ConfigError(
                f"lora.target_modules: {target} has a row a token of the vocabulary and would be "
                "trained in full, without LoRA, which nothing here exports; leave it out"
            )
        matches = [module for module in modules if f".{module}".endswith(f".{target}")]
        if not matches and target not in parameters - {"weight", "bias"}:
            dots = target.count(".")
            ends = {".".join(name.split(".")[-dots - 1 :]) for name in layers}
            raise ConfigError(
                f"lora.target_modules: '{name}' has no layer '{target}'."
                + did_you_mean(target, ends)
            )
        if others := sorted(set(matches) - layers):
            inside = {n.rpartition(".")[2] for n in layers if n.startswith(f"{others[0]}.")}
            kind = type(modules[others[0]]).__name__
            raise ConfigError(
                f"lora.target_modules: '{target}' takes no LoRA, it is a {kind}; "
                f"name layers inside it: {', '.join(sorted(inside)) or 'it has none'}"
            )


def cost_of_examples(tokenizer: Any, prompt: PromptLike) -> str:
    """`prompt.examples: 2 worked examples, 180 tokens a prompt`."""
    prompts = [conversation("?", each) for each in (prompt, PromptFormat(prompt.system))]
    with_them, without = token_lengths(tokenizer, [render(tokenizer, each) for each in prompts])
    count = len(prompt.examples)
    what = "1 worked example" if count == 1 else f"{count} worked examples"
    return f"prompt.examples: {what}, {with_them - without} tokens a prompt"
