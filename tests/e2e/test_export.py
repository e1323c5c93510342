"""Exports of an adapter on the demo model: made, proven, corrupted, killed, and scored."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.export import gguf, merge, models, parity, texts
from posttrain.export.weights import check_weights
from posttrain.model.llama_server import serve
from posttrain.run.results import Check
from posttrain.settings.export import Parity
from tests.helpers import DEMO_MODEL, ROOT, make_adapter, read, run_script
from tests.real.export_proof import edited, other_rope, other_template
from tests.reliability.inside import succeed

SMALL = "export.parity.new_tokens=24"
LIMIT = Parity().max_divergence_16_bit
CHECKS = [
    *("weight_error", "learning_lost", "chat_template", "tokenisation"),
    *("divergence", "greedy_text"),
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(DEMO_MODEL, tmp_path_factory.mktemp("adapters") / "tiny", spread=0.02)


@pytest.fixture(scope="module")
def exported(adapter: Path, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with merged weights and f16, each proven; not to be written to."""
    folder = tmp_path_factory.mktemp("exported")
    succeed(*command(adapter, folder, "merged_16bit,gguf:f16"))
    return folder


def command(adapter: Path, folder: Path, to: str) -> list[str]:
    return ["export", str(adapter), "--output", str(folder), "--to", to, SMALL]


def record(folder: Path) -> dict[str, Any]:
    return dict(read(folder / "export.json"))


def test_every_target_is_proven_and_recorded(exported: Path, adapter: Path) -> None:
    actual = record(exported)
    assert actual["base"]["name"] == str(DEMO_MODEL) and actual["base"]["dtype"] == "float32"
    assert list(actual["exports"]) == ["merged_16bit", "gguf:f16"]
    for target in actual["exports"]:
        entry = actual["exports"][target]
        assert entry["proven"] and [c["name"] for c in entry["checks"]] == CHECKS
        assert (exported / entry["path"]).exists()
    assert not [p for p in exported.rglob("*") if "partial" in p.name]
    merged = exported / "merged_16bit"
    generation = read(merged / "generation_config.json")
    assert generation["do_sample"] is False and generation["eos_token_id"] == 2
    template = "chat_template.jinja"
    assert (merged / template).read_text() == (DEMO_MODEL / template).read_text()


def test_a_second_call_leaves_what_is_proven(exported: Path, adapter: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in exported.rglob("*") if p.is_file()}
    result = succeed(*command(adapter, exported, "merged_16bit,gguf:f16"))
    assert result.stdout.count("proven already") == 2
    changed = [p.name for p, t in before.items() if p.stat().st_mtime_ns != t]
    assert changed in ([], [".export.lock"])


@pytest.fixture(scope="module")
def known(adapter: Path) -> parity.Known:
    return reference(adapter)


def reference(adapter: Path, base: Path = DEMO_MODEL) -> parity.Known:
    """What the adapter on its base says."""
    return parity.reference(models.adapter_model(base, adapter), texts.gate_texts({}), 24)


def merge_weights(base: Path, adapter: Path, dtype: str, into: Path) -> Path:
    merge.merge(models.adapter_model(base, adapter).model, base, adapter, dtype, into)
    return into


def checks_of(
    file: Path,
    known: parity.Known,
    adapter: Path,
    kind: str,
    base: Path = DEMO_MODEL,
    dtype: str = "float16",
) -> dict[str, Check]:
    """All that an export checks, by name."""
    sums = check_weights(base, adapter, file, kind, dtype)
    if file.is_dir():
        actual = parity.check_model(models.merged_model(file), known, LIMIT)
    else:
        with serve(file, context=known.longest + 8) as url:
            actual = parity.check_model(models.LlamaCpp(url), known, LIMIT)
    return {check.name: check for check in [*sums, *actual]}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if not check.passed}


Edit = Callable[[Path], None]


def without(pattern: str) -> Edit:
    """Leave the adapter of some layers out."""

    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "adapter_model.safetensors"
        weights = load_file(path)
        for name in [n for n in weights if re.search(pattern, n) and "lora_B" in n]:
            weights[name].zero_()
        save_file(weights, path)

    return edit


def with_values(file: str, **values: Any) -> Edit:
    """Other values in a JSON file; those of a section are named SECTION__KEY."""

    def edit(folder: Path) -> None:
        path = folder / file
        content = read(path)
        for name, value in values.items():
            *sections, key = name.split("__")
            inner = content
            for section in sections:
                inner = inner[section]
            inner[key] = value
        path.write_text(json.dumps(content), encoding="utf-8")

    return edit


def with_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>assistant", "<|im_start|>model"))


ADAPTER = "adapter_config.json"


@pytest.mark.parametrize(
    ("of_adapter", "of_merged", "caught"),
    [
        (None, None, set()),
        (without(r"layers\.3\.mlp\.down_proj"), None, {"weight_error"}),
        (with_values(ADAPTER, lora_alpha=33), None, {"weight_error"}),
        (with_values(ADAPTER, lora_alpha=0), None, {"weight_error", "learning_lost"}),
        (with_values(ADAPTER, lora_alpha=64), None, {"weight_error", "learning_lost"}),
        (None, with_template, {"chat_template"}),
        (None, with_values("tokenizer.json", model__merges=[]), {"tokenisation"}),
        (None, with_values("config.json", rope_parameters__rope_theta=10.0), {"divergence"}),
        (None, with_values("generation_config.json", eos_token_id=3), {"greedy_text"}),
    ],
    ids=["right", "projection", "scale", "unmerged", "twice", *CHECKS[2:]],
)
def test_a_fault_in_merged_weights_is_caught_by_its_check(
    of_adapter: Edit | None,
    of_merged: Edit | None,
    caught: set[str],
    adapter: Path,
    known: parity.Known,
    tmp_path: Path,
) -> None:
    wrong = shutil.copytree(adapter, tmp_path / "adapter")
    if of_adapter:
        of_adapter(wrong)
    merged = merge_weights(DEMO_MODEL, wrong, "float16", tmp_path / "merged")
    if of_merged:
        of_merged(merged)
    checks = checks_of(merged, known, adapter, "merged_16bit")
    actual = failed(checks)
    if "learning_lost" in caught:  # a large fault may show in what the model says too
        actual -= {"divergence"}
    assert actual == caught, checks


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}, {"r": 4}])
def test_kinds_of_lora_merge_to_what_they_compute(options: dict[str, Any], tmp_path: Path) -> None:
    adapter = make_adapter(DEMO_MODEL, tmp_path / "adapter", spread=0.02, **options)
    exact = models.merged_model(merge_weights(DEMO_MODEL, adapter, "float32", tmp_path / "merged"))
    checks = parity.check_model(exact, reference(adapter), 1e-7)
    rounded = merge_weights(DEMO_MODEL, adapter, "bfloat16", tmp_path / "rounded")
    checks += check_weights(DEMO_MODEL, adapter, rounded, "merged_16bit", "bfloat16")
    assert all(check.passed for check in checks), checks


def other_base(folder: Path, dtype: str, down_proj: float = 1.0) -> Path:
    """The demo model in another type, its MLPs' output scaled."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=getattr(torch, dtype))
    for name, weight in model.named_parameters():
        if "down_proj" in name:
            weight.data *= down_proj
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("dtype", "caught"), [("bfloat16", {"learning_lost"}), ("float16", set())])
def test_a_small_change_that_rounding_takes_back_is_noticed(
    dtype: str, caught: set[str], tmp_path: Path
) -> None:
    """Weights of a bfloat16 base are on its grid, and W + BA is rounded back to W."""
    base = other_base(tmp_path / "base", "bfloat16")
    adapter = make_adapter(base, tmp_path / "adapter", spread=0.0002)
    merged = merge_weights(base, adapter, dtype, tmp_path / "merged")
    known = reference(adapter, base)
    checks = checks_of(merged, known, adapter, "merged_16bit", base, dtype)
    assert failed(checks) == caught, checks


def test_activations_that_do_not_fit_float16_are_noticed(tmp_path: Path) -> None:
    """The export ends with code 4 and keeps the file, which is unproven."""
    base = other_base(tmp_path / "base", "float32", down_proj=1e4)
    adapter = make_adapter(base, tmp_path / "adapter", spread=0.02)
    result = run_script(*command(adapter, tmp_path, "merged_16bit"))
    assert result.returncode == 4 and "UNPROVEN: merged_16bit" in result.stdout
    assert "FAILED  divergence" in result.stdout and "--dtype bfloat16" in result.stdout
    entry = record(tmp_path)["exports"]["merged_16bit"]
    assert entry["proven"] is False and (tmp_path / entry["path"] / "config.json").is_file()
    merged = merge_weights(base, adapter, "bfloat16", tmp_path / "bfloat16")
    known = reference(adapter, base)
    checks = checks_of(merged, known, adapter, "merged_16bit", base, "bfloat16")
    assert "divergence" not in failed(checks), checks


def test_weights_that_do_not_fit_float16_are_refused(tmp_path: Path) -> None:
    base = other_base(tmp_path / "base", "float32", down_proj=1e8)
    adapter = make_adapter(base, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="does not fit float16: export with --dtype bfloat16"):
        merge_weights(base, adapter, "float16", tmp_path / "merged")


def test_a_weight_that_is_missing_or_not_a_number_is_an_error(
    adapter: Path, tmp_path: Path
) -> None:
    """Also of a tensor without LoRA, and before tensors that are right."""
    from safetensors.torch import load_file, save_file

    merged = merge_weights(DEMO_MODEL, adapter, "float16", tmp_path / "merged")
    file = merged / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file({k: v for k, v in tensors.items() if k != "model.norm.weight"}, file)
    error, lost = check_weights(DEMO_MODEL, adapter, merged, "merged_16bit", "float16")
    assert not error.passed and lost.passed
    tensors["model.layers.0.input_layernorm.weight"][3] = math.nan
    save_file(tensors, file)
    error, lost = check_weights(DEMO_MODEL, adapter, merged, "merged_16bit", "float16")
    assert not error.passed and error.value == "nan" and lost.passed


def test_an_incomplete_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    wrong = tmp_path / "adapter"
    shutil.copytree(adapter, wrong)
    weights = load_file(wrong / "adapter_model.safetensors")
    weights.pop(next(name for name in weights if "layers.2" in name))
    save_file(weights, wrong / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"1 tensors are in only one of them.*layers\.2"):
        models.adapter_model(DEMO_MODEL, wrong)


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        (edited(lambda values, _: 0 * values, "blk.2.attn_k.bias"), {"weight_error"}),
        (edited(lambda values, _: values[::-1], "blk.2.attn_q.weight"), {"weight_error"}),
        (other_rope, {"weight_error"}),
        (other_template, {"chat_template"}),
    ],
    ids=["bias", "order", "config", "template"],
)
def test_a_fault_in_a_gguf_file_is_caught_by_its_check(
    fault: Edit,
    caught: set[str],
    exported: Path,
    adapter: Path,
    known: parity.Known,
    tmp_path: Path,
) -> None:
    (good,) = (exported / "gguf").glob("*-f16.gguf")
    file = Path(shutil.copyfile(good, tmp_path / "file.gguf"))
    fault(file)
    checks = checks_of(file, known, adapter, "f16")
    actual = failed(checks)
    if caught == {"weight_error"}:  # on a model of 4 layers it may show in what it says too
        actual -= {"divergence"}
    assert actual == caught, checks


def test_an_unknown_tokenizer_is_refused_in_plain_words(tree: Path, tmp_path: Path) -> None:
    model = shutil.copytree(DEMO_MODEL, tmp_path / "model")
    tokenizer = (model / "tokenizer.json").read_text(encoding="utf-8")
    (model / "tokenizer.json").write_text(tokenizer.replace('"NFC"', '"NFKC"'))
    with pytest.raises(ConfigError, match="does not know this tokenizer"):
        gguf.write_gguf(model, "f16", tmp_path / "x.gguf", "x", str(tree))
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_at_random_points_it_ends_as_if_never_killed(
    adapter: Path, tree: Path, tmp_path: Path
) -> None:
    to = "merged_16bit,gguf:f16,gguf:q4_k_m"
    for name in ("first", "complete"):  # the first builds llama-quantize
        started = time.monotonic()
        succeed(*command(adapter, tmp_path / name, to), timeout=1800)
        seconds = time.monotonic() - started
    expected = {name: e["files"] for name, e in record(tmp_path / "complete")["exports"].items()}
    chance = random.Random(0)
    for number in range(6):
        folder = tmp_path / str(number)
        name, *given = command(adapter, folder, to)
        process = subprocess.Popen(
            [sys.executable, ROOT / "scripts" / f"{name}.py", *given],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(chance.uniform(0.3, 1.0) * seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = record(folder)["exports"] if (folder / "export.json").exists() else {}
        written = {name: entry["files"] for name, entry in done.items()}
        assert written == {name: expected[name] for name in done}
        result = succeed(*command(adapter, folder, to))
        assert result.stdout.count("proven already") == len(done)
        actual = {name: e["files"] for name, e in record(folder)["exports"].items()}
        assert actual == expected
