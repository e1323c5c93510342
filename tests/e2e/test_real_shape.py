"""Scripts and exports at the exact shape of Qwen2.5-0.5B on the CPU, on real text (long)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.base.processor import computes_in_bfloat16
from posttrain.export.llama_cpp import cached_tree
from posttrain.export.models import LlamaCpp
from posttrain.model.llama_server import serve
from tests.e2e.test_recipe import LOCAL
from tests.helpers import ROOT, SHARED, make_adapter, make_qwen, needs_shared, read, rows

pytestmark = [needs_shared, pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "qwen2.5-0.5b-random"
    return make_qwen(folder, SHARED / "qwen2.5-tokenizer")


# --- a step of training, of a model in 4 bits -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "overrides"),
    [
        (
            "dpo",
            "dpo_french_16gb",
            [
                *(*LOCAL["dpo"], "data.holdout=298"),  # of 300
                "training.per_device_train_batch_size=2",
                "evaluation={limit: 2, replies: 1, max_new_tokens: 8, batch_size: 2, also: []}",
            ],
        ),
        (
            "grpo",
            "grpo_gsm8k_16gb",
            [
                *(*LOCAL["grpo"], "training.per_device_train_batch_size=4"),
                *("training.num_generations=4", "training.max_completion_length=32"),
                "evaluation={limit: 2, max_new_tokens: 8}",
            ],
        ),
    ],
)
def test_one_step(tmp_path: Path, base: Path, name: str, config: str, overrides: list[str]) -> None:
    """In less than 8 GB."""
    run, log = tmp_path / name, tmp_path / "log"
    script, yaml = ROOT / "scripts" / f"{name}.py", ROOT / "configs" / f"{config}.yaml"
    command = [sys.executable, script, "--config", yaml, "--output", run, f"model.name={base}"]
    command += ["training.max_steps=1", "training.gradient_accumulation_steps=1"]
    if not computes_in_bfloat16():  # emulated, a product takes four times as long
        command += ["model.dtype=float32", "training.bf16=false"]
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [*map(str, command), *overrides, "data.validation=0"],
            stdout=file,
            stderr=file,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        _, status, usage = os.wait4(process.pid, 0)  # the peak memory of this process alone
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, log.read_text(encoding="utf-8")
    assert rows(run / "metrics.jsonl")[0]["step"] == 1
    assert usage.ru_maxrss / 2**20 < 8


# --- exports --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("adapters") / "random")


@pytest.fixture(scope="module")
def exported(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merged, q8_0 and q4_k_m, by the command with its standard input closed."""
    folder = tmp_path_factory.mktemp("exported")
    to = "merged_16bit,gguf:q8_0,gguf:q4_k_m"
    command = [ROOT / "scripts" / "export.py", adapter, "--output", folder, "--to", to]
    result = subprocess.run(
        [sys.executable, *command, "export.parity.new_tokens=16"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_export_is_unattended_and_proven(exported: Path) -> None:
    exports = read(exported / "export.json")["exports"]
    assert all(entry["proven"] for entry in exports.values())
    assert (cached_tree() / "llama-quantize").is_file()
    sizes = [exports[target]["bytes"] for target in ("merged_16bit", "gguf:q8_0", "gguf:q4_k_m")]
    assert sizes == sorted(sizes, reverse=True)


def test_llama_cpp_tokenises_as_the_tokenizer_does(exported: Path) -> None:
    """100 English and 100 French texts: GSM8K questions and French instructions."""
    from transformers import AutoTokenizer

    pairs = read(SHARED / "french-preferences" / "preferences.json")
    strings = [row["question"] for row in rows(SHARED / "gsm8k" / "test.jsonl")[:100]]
    strings += [pair["chosen"] for pair in pairs[:100]]
    tokenizer = AutoTokenizer.from_pretrained(exported / "merged_16bit")
    (file,) = (exported / "gguf").glob("*-q8_0.gguf")
    with serve(file, context=512) as url:
        actual = [LlamaCpp(url).tokenize(text) for text in strings]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in strings]
    assert len(actual) == 200 and actual == expected


def test_peak_memory_of_a_merge(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Under four times the 16-bit weights, the libraries themselves included: the base in float32,
    as every check of an export needs it, and the pages of its file that are read.

    The kernel's high-water mark: getrusage would hand on that of the process that started this one.
    """
    program = (
        "import re, sys; from pathlib import Path; "
        "from posttrain.export.merge import merge; "
        "from posttrain.export.models import adapter_model; "
        "base, adapter, into = map(Path, sys.argv[1:]); "
        "merge(adapter_model(base, adapter).model, base, adapter, 'bfloat16', into); "
        "status = Path('/proc/self/status').read_text(); "
        "print('PEAK', 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]))"
    )
    command = [sys.executable, "-c", program, base, adapter, tmp_path / "merged"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    (peak,) = re.findall(r"PEAK (\d+)", result.stdout)
    weights = (tmp_path / "merged" / "model.safetensors").stat().st_size
    assert int(peak) < 4 * weights, f"{int(peak) / weights:.2f} times the weights"
