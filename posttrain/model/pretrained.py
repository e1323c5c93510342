"""Load a model and its tokenizer to generate with: a model folder, hub model or adapter folder."""

from pathlib import Path
from typing import Any

from posttrain.base.errors import ConfigError, first_line, hub_errors
from posttrain.base.files import read_object, tensor_shapes
from posttrain.base.paths import ROOT, here_or_project
from posttrain.data.render import end_of_reply, limit_token_ids
from posttrain.model import adapter, runtime
from posttrain.model.merged import choose_weights
from posttrain.model.trust import check_model_folder
from posttrain.settings import Model, adapters

CONTEXT = 4096  # tokens to load a model for, unless it takes fewer or was trained on more


def local_or_hub(name: str) -> str:
    """The absolute path of a model folder here or in the project, or the name of a hub model as it
    is. Raises ConfigError if there is no such folder, or if it could run code."""
    if (folder := here_or_project(name).resolve()).is_dir():
        check_model_folder(folder, "model.name")
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        places = " and ".join(dict.fromkeys((str(Path.cwd()), str(ROOT))))
        raise ConfigError(f"model.name: there is no folder '{name}' (looked in {places})")
    return name


def check_files(folder: Path) -> None:
    """Raise ConfigError if weights in a model or adapter folder cannot be read, or an adapter has
    none; what is not a folder here passes."""
    is_adapter = (folder / adapters.CONFIG).is_file()
    for path in [folder / adapters.WEIGHTS] if is_adapter else folder.glob("model*.safetensors"):
        tensor_shapes(path)


def load_tokenizer(model: Model) -> Any:
    """The model's tokenizer, with left padding; raises ConfigError if none can chat."""
    name = local_or_hub(model.name)
    from transformers import AutoTokenizer  # takes seconds

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=model.revision, padding_side="left", trust_remote_code=False
        )
    except hub_errors(ValueError) as error:
        raise ConfigError(
            f"model.name: cannot load the tokenizer of '{name}': {first_line(error)}"
        ) from None
    if not tokenizer.chat_template:
        raise ConfigError(f"model.name: '{name}' has no chat template; use an instruct model")
    if tokenizer.eos_token is None:
        raise ConfigError(f"model.name: the tokenizer of '{name}' has no end-of-sequence token")
    end_at_replies(tokenizer)
    return tokenizer


def safe_options(dtype: str) -> dict[str, Any]:
    """Options for Unsloth to load a model with: no Python code of it is run and no pickle read.
    `auto` lets Unsloth choose the type."""
    import torch

    kind = None if dtype == "auto" else getattr(torch, dtype)  # it refuses the text 'float32'
    return {"dtype": kind, "trust_remote_code": False, "use_safetensors": True}


def context(name: str, trained: int, base: str | None = None) -> int:
    """Tokens of prompt and reply to load a model for: `trained`, those that it was trained with,
    CONTEXT at least, as far as its positions go. Other arguments are those of load_for_scoring."""
    model = local_or_hub(name)
    if (Path(model) / adapters.CONFIG).is_file():
        model = base or adapters.base_of(Path(model))
    try:
        return up_to_positions(model, None, max(trained, CONTEXT))
    except hub_errors(ValueError) as error:
        raise ConfigError(
            f"cannot load the model '{model}': {first_line(error)} It is not a folder here; "
            "check the name, or the connection to the hub"
        ) from None


def up_to_positions(name: str, revision: str | None, wanted: int) -> int:
    """`wanted` tokens, or the model's positions if fewer: Unsloth would silently stretch them."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False).to_dict()
    return int(min(wanted, config.get("max_position_embeddings") or wanted))


def load_for_scoring(
    name: str, load_in_4bit: bool, dtype: str, max_seq_length: int, base: str | None = None
) -> tuple[Any, Any]:
    """The model and tokenizer of a model folder, hub model or adapter folder, to generate with. An
    adapter is put on `base`, where one is named, instead of the model that it names itself. Raises
    ConfigError if the model cannot be loaded."""
    import torch

    path = Path(local_or_hub(name))
    check_files(path)
    if (path / adapters.CONFIG).is_file():
        check_files(Path(base or adapters.base_of(path)))
    elif dtype == "auto" and (path / "config.json").is_file():
        stored = read_object(path / "config.json")
        if "float16" in (stored.get("dtype"), stored.get("torch_dtype")):
            # Unsloth's bfloat16 would round an export a second time; a CPU has no fast float16.
            dtype = "float16" if torch.cuda.is_available() else "float32"
    with runtime.quiet(verbose=False), adapter.with_base_path(path, base) as folder:
        try:
            model, tokenizer = runtime.unsloth().from_pretrained(
                str(folder),
                max_seq_length=max_seq_length,
                load_in_4bit=load_in_4bit,
                **safe_options(dtype),
            )
        except hub_errors(ValueError, RuntimeError) as error:
            raise ConfigError(f"cannot load the model '{name}': {first_line(error)}") from None
    if not tokenizer.chat_template:
        raise ConfigError(f"the model '{name}' has no chat template; use an instruct model")
    if (path / adapters.CONFIG).is_file():
        choose_weights(model, "auto", keep=False)
    return model, set_up_generation(model, tokenizer, f"the model '{name}'")


def set_up_generation(policy: Any, tokenizer: Any, what: str) -> Any:
    """Set left padding, a padding token and all end tokens, remove the model's own sampling
    settings, and keep the output layer from being copied.

    Models come with sampling settings (Qwen2.5: temperature 0.7, repetition penalty 1.1), which
    generate() would use wherever the caller sets none. Ours come from the YAML alone. Returns the
    tokenizer. Raises ConfigError, about `what`, without an embedding for the padding or end token.
    """
    from transformers import GenerationConfig

    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ends = end_tokens(policy.generation_config, tokenizer)
    end_at_replies(tokenizer)
    limit_token_ids(tokenizer, policy.get_input_embeddings().weight.shape[0], what)
    policy.generation_config = GenerationConfig(
        eos_token_id=sorted(ends | {tokenizer.eos_token_id}), pad_token_id=tokenizer.pad_token_id
    )
    if policy.device.type == "cpu":
        policy.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return tokenizer


def _contiguous(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy the input of the output layer, of shape (B, n, H), if it is a view into longer rows.

    After a prompt transformers passes `hidden[:, -1:, :]`. torch multiplies such a view with a
    frozen weight row by row, and for bfloat16 on a CPU it copies the weight for every row: 272 MB
    at Qwen2.5-0.5B's vocabulary, where the input has 2 KB.
    """
    return (args[0].contiguous(), *args[1:])


def end_at_replies(tokenizer: Any) -> None:
    """Make the token that the chat template ends a reply with the tokenizer's end of sequence,
    which trl puts after a reply in DPO. Gemma's own, for one, ends a document and not a turn."""
    tokenizer.eos_token = end_of_reply(tokenizer) or tokenizer.eos_token


def end_tokens(declared: Any, tokenizer: Any) -> set[int]:
    """Ids that end a reply: the tokenizer's EOS and those that a GenerationConfig declares."""
    several = declared.eos_token_id
    several = several if isinstance(several, list) else [several]
    return {int(i) for i in [tokenizer.eos_token_id, *several] if i is not None}


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer without the way in which it was read on this machine."""
    tokenizer.init_kwargs.pop("local_files_only", None)
    tokenizer.save_pretrained(folder)
