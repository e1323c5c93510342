"""Exports at the exact shape of Qwen2.5-0.5B on the CPU, unattended (long)."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.export.llama_cpp import cached_tree
from posttrain.export.models import LlamaCpp
from posttrain.model.llama_server import serve
from tests.helpers import ROOT, SHARED, make_adapter, make_qwen, needs_shared
from tests.reliability.inside import read

pytestmark = [
    needs_shared,
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "qwen2.5-0.5b-random"
    return make_qwen(folder, SHARED / "qwen2.5-tokenizer")


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
    record = read(exported / "export.json")
    assert all(entry["proven"] for entry in record["exports"].values())
    assert (cached_tree() / "llama-quantize").is_file()
    sizes = [record["exports"][t]["bytes"] for t in ("merged_16bit", "gguf:q8_0", "gguf:q4_k_m")]
    assert sizes == sorted(sizes, reverse=True)


def test_llama_cpp_tokenises_as_the_tokenizer_does(exported: Path) -> None:
    """100 English and 100 French texts: GSM8K questions and French instructions."""
    from transformers import AutoTokenizer

    lines = (SHARED / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = read(SHARED / "french-preferences" / "preferences.json")
    strings = [json.loads(line)["question"] for line in lines[:100]]
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
