"""The parts of an export that need no model: targets, sources, records, room on the disk."""

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.base.files import write_json
from posttrain.export import gguf, llama_cpp, merge, parity, session, source
from posttrain.export.gguf import known_pre_tokenizer
from posttrain.export.proof import Record, at_most
from posttrain.model.llama_server import FULL_DISTRIBUTION
from posttrain.run import room
from posttrain.run.results import Check
from posttrain.settings.export import Export, Parity
from posttrain.train.session import export
from tests.helpers import ROOT, Capsys, make_adapter
from tests.unit.conftest import Ask, make_config, write_file

DEMO = ROOT / "assets" / "demo_model"
BASE = {"name": "base", "dtype": "bfloat16", "sha256": "b"}
GATE = {"dtype": "bfloat16", "parity": {}}
PASSED = [Check("tokenisation", 0, 0, True)]


def test_targets_come_after_what_they_are_made_from() -> None:
    assert room.in_order([]) == []
    assert room.in_order(["ollama"]) == ["merged_16bit", "gguf:q8_0", "ollama"]
    given = ["ollama", "gguf:f16", "merged_16bit", "gguf:f16"]
    assert room.in_order(given) == ["merged_16bit", "gguf:f16", "ollama"]


@pytest.fixture
def proven(tmp_path: Path) -> Record:
    write_file(tmp_path / "merged_16bit" / "model.safetensors", b"weights")
    record = Record(tmp_path, BASE, "a")
    assert record.add("merged_16bit", tmp_path / "merged_16bit", 1.0, GATE, PASSED)
    return record


def proven_again(record: Record, gate: dict[str, Any] = GATE, name: str = "merged_16bit") -> bool:
    """By the record as it is read of the disk."""
    return Record(record.folder, BASE, "a").proven(name, gate)


def test_a_proven_export_stays_proven_while_nothing_changes(proven: Record) -> None:
    assert proven_again(proven)
    assert not proven_again(proven, name="gguf:f16")
    assert not proven_again(proven, {**GATE, "dtype": "float16"})
    for base, adapter in ((BASE, "b"), ({**BASE, "sha256": "c"}, "a")):
        other = Record(proven.folder, base, adapter)
        assert not other.proven("merged_16bit", GATE)
        assert other.content["exports"]["merged_16bit"]["stale"] == "made from other weights"
    path = proven.folder / "merged_16bit" / "model.safetensors"
    for content in (b"w3ights", b"weight"):
        path.write_bytes(content)
        assert not proven_again(proven)
    path.unlink()
    assert not proven_again(proven)


@pytest.mark.parametrize("exports", [{}, {"exports": []}, {"exports": {"a": 3, "b": {}}}])
def test_a_damaged_record_proves_nothing(proven: Record, exports: dict[str, Any]) -> None:
    write_json(proven.path, exports)
    assert not proven_again(proven) and Record(proven.folder, BASE, "a").content["exports"] == {}


def test_one_failed_check_makes_a_file_unproven(proven: Record) -> None:
    checks = [*PASSED, at_most("max_logit_difference", 3.0, 0.25)]
    assert not proven.add("merged_16bit", proven.folder / "merged_16bit", 1.0, GATE, checks)
    assert not proven_again(proven)
    entry = json.loads(proven.path.read_text())["exports"]["merged_16bit"]
    assert (entry["proven"], entry["checks"][1]["passed"]) == (False, False)


def test_a_value_passes_up_to_its_limit() -> None:
    values = {0.25: True, 0.3: False, float("nan"): False}
    checks = [at_most("name", value, 0.25) for value in values]
    assert [check.passed for check in checks] == [*values.values()]
    assert at_most("name", 0, 0).passed
    json.dumps([check.value for check in checks], allow_nan=False)


@pytest.mark.parametrize("crash_at", range(5))
def test_a_crash_never_leaves_a_proven_entry_for_other_files(
    proven: Record, crash_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two steps on the disk; the next call ends with the complete new export."""
    final = proven.folder / "merged_16bit"

    def write(into: Path) -> list[Check]:
        write_file(into / "model.safetensors", b"new")
        return PASSED

    steps = itertools.count()

    def crashing(real: Any) -> Any:
        def step(*arguments: Any) -> Any:
            if next(steps) >= crash_at:
                raise KeyboardInterrupt
            return real(*arguments)

        return step

    other = {**GATE, "dtype": "float16"}
    with monkeypatch.context() as patched:
        for name in ("replace", "fsync"):
            patched.setattr(os, name, crashing(getattr(os, name)))
        with pytest.raises(KeyboardInterrupt):
            path, checks = session._in_place(final, write)
            proven.add("merged_16bit", path, 1.0, other, checks)
    assert not proven_again(proven, other)
    kept = final / "model.safetensors"
    assert not kept.exists() or kept.read_bytes() in (b"weights", b"new")

    path, checks = session._in_place(final, write)
    assert proven.add("merged_16bit", path, 1.0, other, checks)
    assert proven_again(proven, other)
    assert [p.name for p in proven.folder.iterdir() if ".partial" in p.name] == []


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    def write(into: Path) -> list[Check]:
        write_file(into / "model.safetensors", b"half")
        raise RuntimeError("Error while serializing: I/O error: No space left on device")

    with pytest.raises(ConfigError, match=r"the disk is full; free some space and export again"):
        session._in_place(tmp_path / "out" / "merged_16bit", write)
    assert [*(tmp_path / "out").iterdir()] == []


def test_a_modelfile_is_proven_for_its_own_gguf_and_leftovers_make_room(tmp_path: Path) -> None:
    adapter = make_adapter(DEMO, tmp_path / "adapter")
    trained = source.Trained(adapter, tmp_path / "out", "x", {})
    left = [
        tmp_path / "out" / name for name in (".merged_16bit.1.old", "gguf/.x-f16.gguf.2.partial")
    ]
    for path in left:
        write_file(path, b"of a killed export")

    def exports(to: list[str]) -> session.Exports:
        return session.Exports(trained, Export(to=to), "demo", DEMO)

    first = exports(["gguf:f16", "ollama"])
    assert not any(path.exists() for path in left)
    modelfile = write_file(tmp_path / "out" / "gguf" / "Modelfile", b"FROM ./x-f16.gguf")
    first.record.add("ollama", modelfile, 1.0, first._gate_of("ollama"), PASSED)
    assert exports(["gguf:f16", "ollama"]).proven["ollama"]
    assert not exports(["gguf:q8_0", "ollama"]).proven["ollama"]


def test_a_run_folder_an_adapter_of_a_run_and_a_lone_adapter(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    make_config(run / "adapter")
    (run / "config.yaml").write_text("model: {name: x}\ndata: {}\ntraining: {}\n")
    checkpoint = source.find(make_config(run / "checkpoints" / "step-000002"), None)
    assert checkpoint.output == ROOT / "outputs" / "export" / "my-run-step-000002"
    assert checkpoint.run["model"] == {"name": "x"}
    for path in (run, run / "adapter"):
        trained = source.find(path, None)
        assert (trained.adapter, trained.output, trained.name) == (run / "adapter", run, "my-run")
        assert trained.run["model"] == {"name": "x"}
    lone = source.find(make_config(tmp_path / "lone"), None)
    for other in ("model: gpt2", "model:"):  # a config.yaml of another tool
        (tmp_path / "config.yaml").write_text(other)
        assert source.find(make_config(tmp_path / "adapter"), None).run == {}
    shutil.rmtree(tmp_path / "adapter")
    (tmp_path / "config.yaml").unlink()
    assert (lone.output, lone.run) == (ROOT / "outputs" / "export" / "lone", {})
    assert source.find(tmp_path / "lone", tmp_path / "out").output == tmp_path / "out"
    with pytest.raises(ConfigError, match=r"neither a run folder .* adapter_config.json"):
        source.find(tmp_path, None)
    (tmp_path / "config.yaml").write_text("model: {name: x}\n")
    with pytest.raises(ConfigError, match=r"not finished, so it has no adapter/ yet"):
        source.find(tmp_path, None)


def test_the_base_is_the_requested_one_or_the_runs_or_the_adapters(tmp_path: Path) -> None:
    adapter = make_config(tmp_path / "adapter", base_model_name_or_path=str(DEMO))
    trained = source.Trained(adapter, tmp_path, "x", {})
    assert source.base_folder(trained, None) == (str(DEMO), DEMO)
    other = shutil.copytree(DEMO, tmp_path / "other")
    of_run = source.Trained(adapter, tmp_path, "x", {"model": {"name": str(other)}})
    assert source.base_folder(of_run, None)[1] == other
    assert source.base_folder(of_run, str(DEMO))[1] == DEMO


def test_the_revision_is_that_of_the_runs_base_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[str, str | None]] = []

    def fetch(name: str, revision: str | None) -> Path:
        fetched.append((name, revision))
        return DEMO

    monkeypatch.setattr(source, "_fetch", fetch)
    model = {"name": "some/model", "revision": "v1"}
    trained = source.Trained(make_config(tmp_path), tmp_path, "x", {"model": model})
    source.base_folder(trained, None)
    source.base_folder(trained, "other/model")
    assert fetched == [("some/model", "v1"), ("other/model", None)]


def test_the_tokenizer_is_that_of_the_training(tmp_path: Path) -> None:
    """Its copy in the adapter folder, which may have another chat template than the base."""
    adapter = make_config(tmp_path / "adapter")
    bases = merge.load_tokenizer(adapter, DEMO).chat_template
    for name in (*merge.TOKENIZER_FILES, "chat_template.jinja"):
        shutil.copy(DEMO / name, adapter)
    (adapter / "chat_template.jinja").write_text(f"{bases}<!-- own -->")
    assert merge.load_tokenizer(adapter, DEMO).chat_template == f"{bases}<!-- own -->"


def test_ollama_samples_as_the_run_was_scored() -> None:
    run = {"evaluation": {"temperature": 0.7}}
    assert session.sampling(run) == {"temperature": 0.7, **FULL_DISTRIBUTION}
    assert session.sampling({}) == {"temperature": 0.0, "repeat_penalty": 1}


def test_a_quantised_base_is_refused_or_replaced_by_its_original(tmp_path: Path) -> None:
    def base(name: str) -> Path:
        adapter = make_config(tmp_path / "adapter", base_model_name_or_path=f"{tmp_path}/{name}")
        return source.base_folder(source.Trained(adapter, tmp_path, "x", {}), None)[1]

    quantised = shutil.copytree(DEMO, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"quantised weights.*--base"):
        base("quantised")
    shutil.copytree(DEMO, tmp_path / "real")
    assert base("real-unsloth-bnb-4bit") == tmp_path / "real"


def test_what_cannot_be_merged_exactly_is_refused(tmp_path: Path) -> None:
    """As where a run starts from an adapter: test_stages.py has every kind."""
    adapter = make_config(tmp_path, target_modules=["q_proj", "lm_head"])
    with pytest.raises(ConfigError, match=r"changes lm_head .tied.*; an export merges LoRA"):
        merge.check_adapter(adapter, DEMO)


def test_tokens_that_are_not_listed_are_one_outcome_of_a_divergence() -> None:
    """0.5 ln(0.5 / 0.9) + 0.5 ln(0.5 / 0.1) = ln(5 / 3)"""
    expected, actual = {7: math.log(0.5)}, {7: math.log(0.9)}
    assert parity.divergence(expected, actual) == pytest.approx(math.log(5 / 3))


def test_the_type_of_the_merged_weights() -> None:
    assert room.merged_dtype("auto", ["merged_16bit", "gguf:q8_0"]) == "float16"
    assert room.merged_dtype("auto", ["gguf:bf16"]) == "bfloat16"
    assert room.merged_dtype("bfloat16", ["gguf:f16"]) == "bfloat16"
    with pytest.raises(ConfigError, match="gguf:bf16 would round float16 weights a second time"):
        room.merged_dtype("float16", ["gguf:bf16"])


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "bf16"), ("float16", "f16")])
def test_q4_k_m_is_quantised_from_weights_that_were_rounded_once(
    dtype: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": dtype}))
    called: list[list[Any]] = []
    for name in ("find_tree", "find_quantizer"):
        monkeypatch.setattr(gguf, name, lambda where: where)
    monkeypatch.setattr(gguf, "run_tool", lambda command, **_: called.append(command))
    gguf.write_gguf(tmp_path, "q4_k_m", tmp_path / "m.gguf", "m", None)
    converted, quantised = called
    assert kind in converted and quantised[1:] == [converted[6], tmp_path / "m.gguf", "q4_k_m"]


def test_a_pre_tokenizer_is_known_by_its_rules_alone(tmp_path: Path) -> None:
    assert known_pre_tokenizer(DEMO) == "qwen2"
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    split = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    split["Regex"] = split["Regex"].replace(r"\p{N}|", r"\p{N}{1,3}|")
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert known_pre_tokenizer(tmp_path) is None


def test_an_export_that_does_not_fit_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"0.0 GB free on the disk.*needs 0.2 GB"):
        room.check_room(DEMO, tmp_path, ["merged_16bit", "gguf:q4_k_m"])
    room.check_room(DEMO, tmp_path, [])
    needed = room.disk_bytes(10**9, ["merged_16bit", "gguf:q4_k_m"])
    assert needed == pytest.approx((2 + 0.7 + 2) * 1e9 + 2e8)  # q4_k_m is made of a 16-bit file


def test_what_cannot_be_exported_after_training_is_one_message(
    tmp_path: Path, capfd: Capsys
) -> None:
    assert export(tmp_path, Export()) == 0
    assert export(tmp_path, Export(to=["merged_16bit"])) == 2  # there is no adapter
    assert "adapter_config.json" in capfd.readouterr().err


def test_only_the_pinned_archive_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    archive, quantizer = tmp_path / "llama_cpp_python.tar.gz", tmp_path / "build/bin/llama-quantize"
    archive.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="is not the pinned"):
        llama_cpp.find_tree(str(archive))
    with pytest.raises(ConfigError, match=r"not a llama.cpp tree: there is no convert_hf"):
        llama_cpp.find_tree(str(tmp_path))
    (tmp_path / llama_cpp.CONVERTER).touch()
    assert llama_cpp.find_tree(str(tmp_path)) == tmp_path
    with pytest.raises(ConfigError, match="has no llama-quantize"):
        llama_cpp.find_quantizer(tmp_path)
    write_file(quantizer, "")
    assert llama_cpp.find_quantizer(tmp_path) == quantizer


def test_help_and_wrong_requests(ask: Ask, tmp_path: Path) -> None:
    result = ask("export", "--help")
    assert result.returncode == 0 and "export.parity.max_divergence_q8_0" in result.stdout
    adapter = make_config(tmp_path / "adapter", base_model_name_or_path=str(DEMO))
    for arguments, message in (
        ([adapter], "nothing to export: pass --to"),
        ([adapter, "--to", "gguf:q5_k_m"], "export.to.0: should be 'merged_16bit'"),
        ([adapter, "export.parity.new_token=3"], "Did you mean 'new_tokens'?"),
    ):
        result = ask("export", *arguments)
        assert (result.returncode, message in result.stderr) == (2, True), result.stderr


def test_a_removed_limit_in_an_old_config_is_named_and_ignored(capsys: Capsys) -> None:
    parity = Parity.model_validate({"problems": 4, "answer_tokens": 24, "new_tokens": 24})
    assert parity == Parity(new_tokens=24)
    assert "export.parity: problems, answer_tokens: removed" in capsys.readouterr().err
