"""What the doctor says of made-up machines: a stand-in nvidia-smi, other versions, full disks."""

import json
import re
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from huggingface_hub import constants

from posttrain.base.paths import shown
from posttrain.doctor import configs, installation, machine, services
from posttrain.model import estimate
from posttrain.model.shape import KNOWN, Shape, shape_of
from scripts import doctor
from tests.helpers import CONFIGS, ROOT, Capsys, settings_of
from tests.unit.conftest import Ask, write_file
from tests.unit.test_server import Server, api

__all__ = ["api"]

T4 = "0, GPU-1, Tesla T4, 550.54.15, 15360, 3, 7.5"
L4 = "0, GPU-2, NVIDIA L4, 570.86.15, 23034, 4, 8.9"
LAPTOP = "0, GPU-4, NVIDIA GeForce RTX 4060 Laptop GPU, 570.86.15, 8188, 1, 8.9"
K80 = "0, GPU-5, Tesla K80, 470.256.02, 11441, 0, 3.7"
BROKEN = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running."
)
Look = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> Look:
    """`look(nvidia_smi_output)` -> the doctor's exit code, its JSON and its text, with 64 GB."""
    memory = SimpleNamespace(total=64 * 2**30, available=60 * 2**30)
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("COLUMNS", "120")  # so that no sentence looked for is wrapped
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub" / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    for name in ("CUDA_VISIBLE_DEVICES", "HF_TOKEN", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)

    def run(output: str | None, code: int = 0, extra: str = "") -> tuple[int, dict[str, Any], str]:
        if output is not None:
            (tools / "answer").write_text(output + "\n")
            lines = f'while read line; do echo "$line"; done < {tools}/answer'
            (tools / "nvidia-smi").write_text(f"#!/bin/sh\n{extra}\n{lines}\nexit {code}\n")
            (tools / "nvidia-smi").chmod(0o755)
        left = doctor.main(["--output", str(tmp_path)])
        text = capsys.readouterr().out
        assert doctor.main(["--json", "--output", str(tmp_path)]) == left
        found = json.loads(capsys.readouterr().out)
        assert found["usable"] == (left == 0)
        return left, found, text

    return run


def finding(found: dict[str, Any], subject: str) -> dict[str, Any]:
    sections = ("machine", "installation", "services", "configs")
    (one,) = (f for name in sections for f in found[name] if f["subject"] == subject)
    return dict(one)


def fitting(found: dict[str, Any]) -> set[str]:
    return {Path(row["config"]).stem for row in found["memory"] if row["fits"]}


def all_of(*kinds: str) -> set[str]:
    return {path.stem for path in CONFIGS if path.stem.endswith(kinds)}


def test_a_cpu_with_too_little_memory(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum is that of a CPU, in the number type that it computes in."""
    settings = settings_of("grpo_gsm8k_cpu")
    shape = shape_of("Qwen/Qwen2.5-0.5B-Instruct")
    assert shape is not None
    for bf16 in (True, False):
        monkeypatch.setattr(estimate, "computes_in_bfloat16", lambda bf16=bf16: bf16)
        _, found, _ = look(None)
        (row,) = (r for r in found["memory"] if r["config"].endswith("/grpo_gsm8k_cpu.yaml"))
        cpu = replace(estimate.CPU, auto=2 if bf16 else 4)
        assert row["estimated_gb"] == estimate.estimate(settings, shape, cpu) and row["fits"]
    small = SimpleNamespace(total=12 * 2**30, available=8 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: small)
    text = look(None)[2]
    assert "may not fit: the estimate is over the 12.0 GB of memory" in text


@pytest.mark.parametrize(
    ("card", "fits", "expected"),
    [
        (
            T4,
            all_of("t4", "demo", "cpu"),
            [
                *("Tesla T4, compute capability 7.5", "15.0 GB, 0.0 GB in use", "no bfloat16"),
                "bfloat16 no, float16 yes, flash attention no",
                "use configs/dpo_french_t4.yaml instead",
            ],
        ),
        (L4, all_of(""), ["bfloat16 yes, float16 yes, flash attention yes"]),
        (LAPTOP, all_of("demo", "cpu") - {"grpo_gsm8k_cpu"}, ["needs 14 GB"]),
        (None, all_of("demo", "cpu"), [f"{len(CONFIGS) - 7} more"]),
    ],
)
def test_what_fits(card: str | None, fits: set[str], expected: list[str], look: Look) -> None:
    code, found, text = look(card)
    assert code == 0 and "\nUsable. Configs that fit: " in text
    assert fitting(found) == fits and len(fits) > 5
    for part in expected:
        assert part in text
    assert text.count("needs a GPU") == (card is None)
    assert len(installation.locked()) > 100
    assert finding(found, "packages")["status"] == "ok"
    assert finding(found, "GPU")["status"] == ("ok" if card else "warn")


@pytest.mark.parametrize(
    ("output", "code", "extra", "expected"),
    [
        (K80, 0, "", "-> install driver 525.60.13 or later"),
        (BROKEN, 9, "", "couldn't communicate"),
        (BROKEN, 9, "", "-> install a driver that fits this kernel"),
        (T4, 0, "while :; do :; done", "did not answer"),
        ("", 0, "", "nvidia-smi fails"),
        ("No devices were found", 0, "", "nvidia-smi fails"),
    ],
)
def test_a_card_or_driver_that_cannot_be_used(
    output: str, code: int, extra: str, expected: str, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    if extra:
        monkeypatch.setattr(machine, "SECONDS", 0.3)
    left, found, text = look(output, code, extra)
    assert left == 2 and "Not usable yet" in text
    assert finding(found, "GPU")["status"] == "fail"
    assert expected in " ".join(text.split())
    assert output != K80 or finding(found, "driver")["status"] == "fail"


def test_which_of_several(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    two = f"{T4}\n1, GPU-abc, NVIDIA L4, 570.86.15, 23034, 4, 8.9"
    assert "Tesla T4, compute capability 7.5; 1 more here" in look(two)[2]
    for wanted in ("1,0", "GPU-abc"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
        assert "NVIDIA L4, compute" in look(two)[2]
    for wanted in ("", "7"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
        code, found, _ = look(two)
        assert code == 0 and "hides every GPU" in finding(found, "GPU")["text"]


def test_what_nvidia_smi_does_not_know_and_a_card_in_use(look: Look) -> None:
    code, found, _ = look("0, GPU-1, Some GPU, 570.86.15, [N/A], [Not Supported], [N/A]")
    assert code == 0
    assert {finding(found, s)["status"] for s in ("GPU", "GPU memory", "precision")} == {"warn"}
    memory = finding(look(T4.replace(" 3,", " 9000,"))[1], "GPU memory")
    assert memory["status"] == "warn" and "8.8 GB in use" in memory["text"]


def test_a_torch_without_cuda(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.cuda_of_torch() == "12.8"
    monkeypatch.setattr(machine, "cuda_of_torch", lambda: None)
    code, found, _ = look(T4)
    assert code == 2 and "torch has no CUDA" in finding(found, "driver")["text"]


@pytest.mark.parametrize(("name", "status"), [("trl", "fail"), ("tqdm", "warn")])
def test_another_version(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, status: str
) -> None:
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n"
    write_file(tmp_path / f"{name}-0.0.1.dist-info" / "METADATA", metadata)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, found, text = look(None)
    assert code == (2 if status == "fail" else 0)
    packages = finding(found, "packages")
    assert packages["status"] == status
    assert packages["details"] == [f"{name} 0.0.1, locked {installation.locked()[name]}"]
    environment = shown(Path(sys.prefix))
    assert f"{name} 0.0.1" in text and f"-> rm -f {environment}/installed.lock" in text


def test_a_missing_package_and_one_for_another_system(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "requirements.lock"
    end = " \\\n    --hash=sha256:0\n"
    windows = f"for-windows==1 ; sys_platform == 'win32'{end}# via x\n"
    lock.write_text(f"nowhere-to-be-found==1.0{end}{windows}")
    monkeypatch.setattr(installation, "LOCK", lock)
    monkeypatch.setattr(installation.locked, "__defaults__", (lock,))
    _, found, _ = look(None)
    packages = finding(found, "packages")
    assert packages["text"] == "0 of 1 packages as in requirements.lock"
    assert packages["details"] == ["nowhere-to-be-found missing, locked 1.0"]


@pytest.mark.parametrize(("free", "code", "status"), [(0.1, 2, "fail"), (1.0, 0, "warn")])
def test_no_disk(
    look: Look, monkeypatch: pytest.MonkeyPatch, free: float, code: int, status: str
) -> None:
    usage = shutil.disk_usage("/")._replace(free=int(free * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    left, found, _ = look(None)
    assert left == code
    for subject in ("room for runs", "room for models"):
        assert finding(found, subject)["status"] == status
        assert finding(found, subject)["advice"]


@pytest.mark.parametrize("answers", [True, False])
def test_the_hub(monkeypatch: pytest.MonkeyPatch, api: Server, answers: bool) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # Unsloth sets the other
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "5e9712e1" * 5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # The server's answer is a refusal, which will do.
        port = api.server_port if answers else silent.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://me:pa55word@127.0.0.1:{port}")
        found = {f.subject: f for f in services.look_at_services()}
    assert ("127.0.0.1 answers" in found["hub"].text) == answers
    assert found["hub"].status == ("ok" if answers else "warn")
    assert bool(found["hub"].advice) == (not answers)
    assert "pa55word" not in str(found) and "5e9712e1" not in str(found)


def test_tokens_are_reported_and_never_shown(
    look: Look, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_file(tmp_path / "hub" / "token", "hf_InTheFile99999999999999")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password InTheNetrc77\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setattr(services, "_answers", lambda url: pytest.fail(f"called {url}"))
    _, found, text = look(None)
    assert "HF_HUB_OFFLINE is set" in finding(found, "hub")["text"]
    assert finding(found, "hub token")["text"] == f"set, in {tmp_path / 'hub' / 'token'}"
    assert str(tmp_path / ".netrc") in finding(found, "W&B")["text"]
    monkeypatch.setenv("HF_TOKEN", "hf_InTheEnvironment888888888")
    monkeypatch.setenv("WANDB_API_KEY", "InTheEnvironment888888888")
    _, found, more = look(None)
    assert "set, in HF_TOKEN" in more and "key set, in WANDB_API_KEY" in more
    for value in ("InTheFile", "InTheNetrc", "InTheEnvironment"):
        assert value not in text + more + json.dumps(found)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen3-0.6B", 596_049_920),
    ],
)
def test_the_shape_has_the_weights_of_the_real_model(name: str, weights: int) -> None:
    shape = shape_of(name)
    assert shape is not None
    norms = (2 * shape.layers + 1) * shape.hidden
    if "Qwen3" in name:  # no biases; a norm of a head's size for queries, and one for keys
        others = shape.layers * 2 * KNOWN[name]["head_dim"]
    else:
        others = shape.layers * (shape.queries + 2 * shape.key_value)
    assert shape.layer_weights + shape.embeddings + norms + others == weights


dpo = partial(settings_of, "dpo_french_16gb")
grpo = partial(settings_of, "grpo_gsm8k_16gb")


def test_an_estimate_by_hand_and_what_changes_it() -> None:
    """What bench/memory.py, on a CPU, does not measure; sizes in GB of 2^30 bytes."""
    qwen = shape_of("Qwen/Qwen2.5-0.5B-Instruct")
    assert qwen is not None
    terms = estimate.estimate(dpo(), qwen)
    # r 16: 24 layers x 16 x (896+896 + 2 (896+128) + 896+896 + 3 (896+4864)); 4 bytes + 2 moments
    assert terms["adapter"] == pytest.approx(24 * 16 * 22912 * 6 / 2**30)
    tokens = 2 * 4 * 1024
    assert terms["kept"] == pytest.approx(tokens * 3 * 896 * 2 / 2**30)
    inside = 6 * 896 + 2 * 128 + 3 * 4864
    assert terms["layer"] == pytest.approx((tokens * inside + 896 * 4864) * 2 / 2**30)
    assert terms["merged"] == 0
    plain = dpo("model.load_in_4bit=false", "training.gradient_checkpointing=false")
    more = estimate.estimate(plain, qwen)
    assert more["weights"] == pytest.approx((qwen.layer_weights + qwen.embeddings) * 2 / 2**30)
    assert more["kept"] + more["layer"] > 10 * (terms["kept"] + terms["layer"])
    assert more["logits"] == terms["logits"]
    fewer = estimate.estimate(dpo("evaluation.batch_size=2"), qwen)
    less = 2 * 6 * 1024 * 896 * 2 / 2**30
    assert fewer["scoring"] == pytest.approx(terms["scoring"] - less)
    of_grpo = estimate.estimate(grpo(), qwen)
    merged = 24 * (2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864) * 2 / 2**30
    assert of_grpo["merged"] == pytest.approx(merged)
    for override in ("rollout_weights=adapter", f"min_gpu_memory_gb={4 * merged - 0.01}"):
        assert estimate.estimate(grpo(f"model.{override}"), qwen)["merged"] == 0
    for changes, factor in (
        (["training.steps_per_generation=64", "training.save_steps=20"], 4),
        (["training.steps_per_generation=8"], 0.5),
    ):
        generation = estimate.estimate(grpo(*changes), qwen)["generation"]
        assert generation == factor * of_grpo["generation"]


def test_a_model_of_unknown_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert shape_of("someone/model") is None
    snapshot = tmp_path / "models--someone--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.copy(ROOT / "assets" / "demo_model" / "config.json", snapshot)
    assert shape_of("someone/model") == shape_of("assets/demo_model")
    (snapshot / "config.json").write_text('{"d_model": 5}')
    assert shape_of("someone/model") is None


def test_an_estimate_over_the_card_is_noted(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "ROWS_AT_ONCE", 500)
    _, found, _ = look(T4)
    said = finding(found, "configs/dpo_french_t4.yaml")["text"]
    assert "may not fit" in said and "lower evaluation.batch_size" in said
    assert "grpo_gsm8k_t4" in fitting(found)


def test_the_terms_of_the_estimates(look: Look) -> None:
    _, found, text = look(L4)
    assert "GB at its peak (estimated)" in text and "not measured" not in text
    sums = doctor.as_sums(found["memory"])
    for part in ("shapes, not measured", "configs/grpo_gsm8k_16gb.yaml\n", "scoring 0."):
        assert part in sums


def test_seconds_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capsys) -> None:
    monkeypatch.setattr(configs, "SECONDS", 0.001)
    doctor.main(["--steps", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    lines = re.findall(r"configs/(\S+_cpu)\.yaml +about (\d+) s a step, (\d+) steps in", printed)
    assert {name for name, *_ in lines} == all_of("cpu")
    seconds = {name: int(value) for name, value, _ in lines}
    assert seconds["grpo_gsm8k_cpu"] > seconds["grpo_gsm8k_smollm2_cpu"] > 0


def test_the_products_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second a product of 1 weight: counted by hand for 2 layers of 1 weight a module."""
    monkeypatch.setattr(configs, "product_seconds", lambda shape, rows, dtype: float(rows))
    shape = Shape(vocab=3, hidden=1, intermediate=1, layers=2, key_value=1, queries=1, tied=True)

    twice = "training.gradient_accumulation_steps=2"
    own = settings_of("dpo_french_cpu", "training.per_device_train_batch_size=1", twice)
    tokens = 2 * 2 * configs.TOKENS
    assert configs.seconds_a_step(own, shape) == configs.OVERHEAD * tokens * (2 * 14 + 3 * 3)
    small = ["training.per_device_train_batch_size=8", "training.max_completion_length=10"]
    own = settings_of("grpo_gsm8k_cpu", *small, twice)
    read, trained, scored = 2 * configs.TOKENS, 2 * 2 * configs.TOKENS + 160, 160
    products = (2 * trained + read) * 14 + 3 * scored * 3
    expected = configs.OVERHEAD * (products + 10 * 16 * (14 + 3))
    assert configs.seconds_a_step(own, shape) == expected


def test_it_answers_without_torch(ask: Ask) -> None:
    for arguments in ((), ("--json",)):
        result = ask("doctor", *arguments)
        assert result.returncode in (0, 2), result.stderr
        assert result.stderr == ""
