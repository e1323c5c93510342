"""Exports at the exact shape of Qwen2.5-0.5B on the CPU, unattended (long)."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.export import float32, parity, texts
from posttrain.export.llama_cpp import cached_tree, find_tree
from posttrain.export.merge import merge
from posttrain.model.llama_server import serve
from posttrain.settings.export import Parity
from tests.helpers import ROOT, SHARED, make_adapter, make_qwen, needs_shared

pytestmark = [
    needs_shared,
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore"),
]
LIMITS = Parity(new_tokens=16, problems=2, answer_tokens=16)
SMALL = [f"export.parity.{k}={getattr(LIMITS, k)}" for k in ("new_tokens", "problems")]
TEXTS = texts.gate_texts({}, 2)


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
    command = [ROOT / "scripts" / "export.py", adapter, "--output", folder, "--to", to, *SMALL]
    result = subprocess.run(
        [sys.executable, *command, "export.parity.answer_tokens=16"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_export_is_unattended_and_proven(exported: Path) -> None:
    record = json.loads((exported / "export.json").read_text())
    assert all(entry["proven"] for entry in record["exports"].values())
    assert (cached_tree() / "llama-quantize").is_file()
    sizes = [record["exports"][t]["bytes"] for t in ("merged_16bit", "gguf:q8_0", "gguf:q4_k_m")]
    assert sizes == sorted(sizes, reverse=True)


def test_merged_logits_follow_the_adapter(exported: Path) -> None:
    """On a bfloat16 base, every logit within 1e-2."""
    record = json.loads((exported / "export.json").read_text())
    checks = {c["name"]: c["value"] for c in record["exports"]["merged_16bit"]["checks"]}
    assert record["base"]["dtype"] == "bfloat16"
    assert checks["max_logit_difference"] < 1e-2
    assert checks["relative_logit_difference"] < 2e-3
    assert checks["learning_lost"] < 2e-2


@pytest.mark.parametrize(
    ("dtype", "largest", "lost"),
    [
        ("float32", 1e-5, 1e-4),
        # Rounding 358 million weights once to 8 bits cannot cost less: its largest effect on any
        # one of 30 million logits is some six times the root mean square.
        ("bfloat16", 6e-2, 0.1),
    ],
)
def test_other_types_differ_by_their_rounding_alone(
    base: Path, adapter: Path, tmp_path: Path, dtype: str, largest: float, lost: float
) -> None:
    merge(base, adapter, dtype, tmp_path / "merged")
    limits = {"max_logit_difference": largest, "max_learning_lost": lost}
    model = float32.adapter_reference(base, adapter)
    known = parity.greedy_texts(model, TEXTS.conversations, LIMITS.new_tokens)
    learnt = parity.learnt_change(model, known)
    del model
    exact = LIMITS.model_copy(update=limits)
    checks = parity.check_merged(known, learnt, tmp_path / "merged", TEXTS, exact)
    assert all(check.passed for check in checks), checks


def test_llama_cpp_tokenises_as_the_tokenizer_does(exported: Path) -> None:
    """100 English and 100 French texts: GSM8K questions and French instructions."""
    from transformers import AutoTokenizer

    lines = (SHARED / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = json.loads((SHARED / "french-preferences" / "preferences.json").read_text("utf-8"))
    strings = [json.loads(line)["question"] for line in lines[:100]]
    strings += [pair["chosen"] for pair in pairs[:100]]
    tokenizer = AutoTokenizer.from_pretrained(exported / "merged_16bit")
    (file,) = (exported / "gguf").glob("*-q8_0.gguf")
    with serve(file, context=512) as url:
        found = [parity.LlamaCpp(url).tokenize(text) for text in strings]
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in strings]
    assert len(found) == 200 and found == expected


def test_peak_memory_of_a_merge(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Under three times the 16-bit weights, the libraries themselves included.

    The kernel's high-water mark: getrusage would hand on that of the process that started this one.
    """
    program = (
        "import re, sys; from pathlib import Path; "
        "from posttrain.export.merge import merge; "
        "merge(Path(sys.argv[1]), Path(sys.argv[2]), 'bfloat16', Path(sys.argv[3])); "
        "status = Path('/proc/self/status').read_text(); "
        "print('PEAK', 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]))"
    )
    command = [sys.executable, "-c", program, base, adapter, tmp_path / "merged"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    (peak,) = re.findall(r"PEAK (\d+)", result.stdout)
    weights = (tmp_path / "merged" / "model.safetensors").stat().st_size
    assert int(peak) < 3 * weights, f"{int(peak) / weights:.2f} times the weights"


def test_the_pinned_tree_is_found_again() -> None:
    assert find_tree(None) == cached_tree()
