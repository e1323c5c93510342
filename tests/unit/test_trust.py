"""Model folders with code or pickles, and poisoned checkpoints, are refused unrun."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from posttrain.base.errors import CheckpointError, ConfigError, hub_errors
from posttrain.base.files import model_fingerprint
from posttrain.export import merge
from posttrain.model import adapter, pretrained
from posttrain.model.trust import check_checkpoint, check_model_folder
from posttrain.run import room
from posttrain.run.checkpoint import CheckpointStore, verify
from posttrain.settings import Model, adapters
from tests.helpers import ROOT
from tests.unit.conftest import Ask, make_config

DEMO = ROOT / "assets" / "demo_model"


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


def refused(folder: Path) -> str:
    """The message on the folder, the same by every function that reads it."""
    with pytest.raises(ConfigError) as caught:
        check_model_folder(folder, "model.name")
    for load in (pretrained.local_or_hub, lambda name: pretrained.load_tokenizer(Model(name=name))):
        with pytest.raises(ConfigError) as again:
            load(str(folder))
        assert str(again.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Model"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoConfig": "evil.Config"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
        ("tokenizer_config.json", {"trust_remote_code": True}),
    ],
)
def test_a_folder_that_requires_code(folder: Path, name: str, values: dict[str, Any]) -> None:
    (folder / "modeling_evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    edit(folder / name, **values)
    assert f"{folder / name} requires Python code" in refused(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.ckpt"])
def test_pickled_weights_are_left_unread_or_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(Payload(folder / "ran")))
    check_model_folder(folder, "model.name")  # beside safetensors
    assert pretrained.load_tokenizer(Model(name=str(folder))).eos_token
    (folder / "model.safetensors").unlink()
    message = refused(folder)
    assert f"only as pickles ({name})" in message and "safetensors" in message
    assert not (folder / "ran").exists()


def test_adapters(folder: Path, tmp_path: Path) -> None:
    trained = make_config(tmp_path / "adapter", base_model_name_or_path=str(folder))
    (trained / "adapter_model.safetensors").write_bytes(b"")
    check_model_folder(trained, "--model")
    (trained / "adapter_model.safetensors").rename(trained / "adapter_model.bin")
    (trained / "other.safetensors").write_bytes(b"")  # which are not weights of the adapter
    with pytest.raises(ConfigError, match=r"only as pickles \(adapter_model\.bin\)"):
        check_model_folder(trained, "--model")
    (trained / "adapter_model.bin").rename(trained / "adapter_model.safetensors")
    edit(folder / "config.json", auto_map={"AutoConfig": "evil.Config"})
    with pytest.raises(ConfigError, match=r"the base model: .*config\.json requires Python"):
        check_model_folder(trained, "--model")


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\udcff"])
def test_a_configuration_that_cannot_be_read(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(ConfigError, match=r"config\.json"):
        check_model_folder(folder, "model.name")


def test_the_scripts_refuse_it_before_anything_heavy(ask: Ask, folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoConfig": "evil.Config"})
    words = ["--config", "configs/dpo_demo.yaml", f"model.name={folder}", "--dry-run"]
    result = ask("dpo", *words)
    assert result.returncode == 2 and "requires Python code" in result.stderr


def test_a_fingerprint_changes_with_what_makes_the_model_only(folder: Path) -> None:
    before = model_fingerprint(folder)
    assert before == model_fingerprint(DEMO) and len(before) == 64
    (folder / "README.md").write_text("of no matter")
    assert model_fingerprint(folder) == before
    for name in ("chat_template.jinja", "model.safetensors", "config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert model_fingerprint(folder) != before
        (folder / name).write_bytes(content)
    assert model_fingerprint(folder) == before


def test_a_large_weight_file_is_known_by_its_ends_and_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.base.files._HASHED_IN_FULL", 1000)
    monkeypatch.setattr("posttrain.base.files._PART", 100)
    path = folder / "model.safetensors"
    content, seen = path.read_bytes(), {model_fingerprint(folder)}
    for changed in (b"x" + content[1:], content[:-1] + b"x", content + b"x"):
        path.write_bytes(changed)
        seen.add(model_fingerprint(folder))
    assert len(seen) == 4


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with the files that torch reads in it, as the trainer writes them."""
    import random

    import numpy as np
    import torch

    store = CheckpointStore(tmp_path / "checkpoints")
    written = store.staging / "checkpoint-5"
    written.mkdir(parents=True)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    states = {"python": random.getstate(), "numpy": np.random.get_state()}
    for name, content in {
        "optimizer.pt": optimizer.state_dict(),
        "scheduler.pt": scheduler.state_dict(),
        "scaler.pt": {"scale": 65536.0, "growth_factor": 2.0},
        "rng_state.pth": {**states, "cpu": torch.random.get_rng_state()},
    }.items():
        torch.save(content, written / name)
    (written / "trainer_state.json").write_text("{}")
    return store.publish(written, 5, {}, keep=2)


def poison(
    checkpoint: Path, name: str, content: bytes, step: int = 5, facts: dict[str, Any] | None = None
) -> None:
    """Put a file in place, with a manifest that vouches for it."""
    (checkpoint / name).write_bytes(content)
    written = checkpoint.rename(checkpoint.with_name("rewritten"))
    (written / "manifest.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posttrain.run.checkpoint.NOT_KEPT", ())
        CheckpointStore(checkpoint.parent).publish(written, step, facts or {}, keep=2)
    assert verify(checkpoint) is None


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("optimizer.pt", "torch"),
        ("rng_state.pth", "legacy torch"),
        ("scheduler.pt", "pickle"),
        ("training_args.bin", "pickle"),
    ],
)
def test_a_poisoned_checkpoint_executes_nothing(checkpoint: Path, name: str, form: str) -> None:
    import torch

    check_checkpoint(checkpoint)
    marker = checkpoint.parent.parent / "ran"
    content = io.BytesIO()
    if form == "pickle":
        pickle.dump(Payload(marker), content)
    else:
        zipped = form == "torch"
        torch.save({"state": Payload(marker)}, content, _use_new_zipfile_serialization=zipped)
    poison(checkpoint, name, content.getvalue())
    with pytest.raises(CheckpointError) as caught:
        check_checkpoint(checkpoint)
    message = str(caught.value)
    assert f"{name}: refused" in message and "Nothing of it was run" in message
    assert not marker.exists()
    if name.endswith((".pt", ".pth")) and form != "pickle":
        assert "requires posix.system" in message
    if form == "pickle":  # the payload itself is live: this is what was refused
        pickle.loads(content.getvalue())
        assert marker.exists()


def test_the_base_of_an_adapter_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path in the project, by the run's config if the project was moved, or on the hub."""
    project, run = tmp_path / "moved", tmp_path / "moved" / "outputs" / "run"
    shutil.copytree(DEMO, project / "assets" / "base")
    monkeypatch.setattr(adapters, "ROOT", project)
    there = str(project / "assets" / "base")

    def base(name: str | None) -> str:
        return adapters.base_of(make_config(run / "adapter", base_model_name_or_path=name))

    assert base("assets/base") == there
    assert base("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"
    gone = "/old/place/assets/base"
    for other in ("", "model: gpt2", "model:"):  # a config.yaml of another tool
        (run / "config.yaml").write_text(other)
        with pytest.raises(ConfigError, match=f"its base model {gone} does not exist"):
            base(gone)
    (run / "config.yaml").write_text("model: {name: assets/base}\n")
    assert base(gone) == there
    checkpoint = shutil.copytree(run / "adapter", run / "checkpoints" / "step-000005")
    assert adapters.base_of(checkpoint) == there
    with pytest.raises(ConfigError, match="names no base model"):
        base(None)
    make_config(run / "adapter", base_model_name_or_path="assets/base")
    (run / "adapter" / "weights").write_text("as they are")
    with adapter.with_base_path(run / "adapter") as actual:
        config = json.loads((actual / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == there
        assert (actual / "weights").read_text() == "as they are"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3613320\n"


@pytest.mark.parametrize("content", [b"", b"garbage" * 99, POINTER, "cut"])
def test_weights_that_cannot_be_read_are_named(folder: Path, content: Any, tmp_path: Path) -> None:
    """A model's and an adapter's, wherever they are loaded, before anything heavy is."""
    trained = make_config(tmp_path / "adapter", base_model_name_or_path=str(folder))
    weights, of_adapter = folder / "model.safetensors", trained / "adapter_model.safetensors"
    shutil.copy(weights, of_adapter)
    reads = {
        weights: lambda: room.check_room(folder, tmp_path, []),
        of_adapter: lambda: merge.check_adapter(trained, folder),
    }
    for path, read in reads.items():
        read()
        original = path.read_bytes()
        path.write_bytes(original[:-9] if isinstance(content, str) else content)
        for each in (read, lambda: pretrained.load_for_scoring(str(trained), False, "float32", 64)):
            with pytest.raises(ConfigError, match=f"^{path} cannot be read .*; copy it again"):
                each()
        path.write_bytes(original)
    of_adapter.unlink()
    with pytest.raises(ConfigError, match=f"^{of_adapter} cannot be read .No such file"):
        reads[of_adapter]()
    assert SafetensorError in hub_errors()
