"""A place that cannot be written to: one line and exit code 2, before anything heavy."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from posttrain.base.disk import check_folder
from posttrain.base.errors import ConfigError
from posttrain.base.files import follow_umask
from tests.helpers import CONFIGS, ROOT
from tests.runs import dpo_run
from tests.unit.conftest import Ask

DEMO = ROOT / "assets"
PROBLEMS = DEMO / "demo_data" / "problems_test.jsonl"


@pytest.mark.parametrize("command", ["dpo", "evaluate", "judge"])
def test_a_file_where_a_folder_should_be(ask: Ask, tmp_path: Path, command: str) -> None:
    run = dpo_run(tmp_path / "run")
    words: dict[str, list[str | Path]] = {
        "dpo": ["--config", ROOT / "configs" / "dpo_demo.yaml"],
        "evaluate": ["--model", DEMO / "demo_model", "--data", PROBLEMS],
        "judge": [run, "--url", "http://127.0.0.1:9", "--model", "m"],
    }
    (tmp_path / "file").write_text("precious")
    output = tmp_path / "file" / "inside"
    result = ask(command, *words[command], "--output", output)
    printed = f"error: --output {output}: {tmp_path / 'file'} is a file; give a folder\n"
    assert (result.returncode, result.stderr) == (2, printed)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_saved_file_follows_the_umask(tmp_path: Path) -> None:
    """safetensors makes its files readable by their owner alone."""
    file = tmp_path / "adapter_model.safetensors"
    save_file({"weight": np.zeros(1)}, file)
    before = os.umask(0o027)
    try:
        follow_umask(file)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # root may do anything
    with pytest.raises(ConfigError, match=f"nothing can be written to {tmp_path}; give another"):
        check_folder(tmp_path / "new" / "run")


def test_what_the_system_refuses_is_one_line(ask: Ask, tmp_path: Path) -> None:
    """Where nothing detected it before: /sys takes no folders, not even from root."""
    for output in ("/sys/kernel/run", f"/tmp/{'x' * 300}"):
        arguments = ["--config", str(CONFIGS[0]), "--output", output]
        result = ask("dpo" if "dpo" in CONFIGS[0].name else "grpo", *arguments)
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert result.stderr.startswith("error: ") and output[:11] in result.stderr
