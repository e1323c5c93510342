"""The model card's Python snippets, run as they stand in a folder like a run's."""

import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.export.merge import merge
from posttrain.export.models import adapter_model
from posttrain.report.model_card import snippets
from posttrain.run.results import Exported
from posttrain.settings import GRPOSettings
from posttrain.settings.command import load_settings
from tests.helpers import ROOT, make_adapter

BASE = ROOT / "assets" / "demo_model"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of the demo model, and merged weights."""
    folder = tmp_path_factory.mktemp("run")
    make_adapter(BASE, folder / "adapter")
    model = adapter_model(BASE, folder / "adapter").model
    merge(model, BASE, folder / "adapter", "float16", folder / "merged_16bit")
    return folder


def test_what_is_called_tested_runs(run: Path) -> None:
    settings = load_settings(GRPOSettings, ROOT / "configs" / "grpo_demo.yaml")
    exports = {"merged_16bit": Exported("merged_16bit")}
    actual = snippets(settings.model_dump(mode="json"), exports, None)
    tested = [snippet for snippet in actual if snippet.tested]
    assert [snippet.title for snippet in tested] == [
        "transformers and peft",
        "transformers, merged weights",
    ]
    # One after the other: to import transformers takes longer than either.
    code = "\n".join(f"exec({snippet.code!r}, {{}})\nprint('ran')" for snippet in tested)
    result = subprocess.run([sys.executable, "-c", code], cwd=run, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first, second, _ = result.stdout.split("ran\n")
    assert first.strip() and second.strip()
