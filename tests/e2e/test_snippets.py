"""The model card's Python snippets, run as they stand in a folder like a run's."""

import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.export.merge import merge
from posttrain.export.models import adapter_model
from posttrain.report.model_card import snippets
from posttrain.run.results import Exported
from tests.helpers import DEMO_MODEL, demo_settings, make_adapter

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of the demo model, and merged weights."""
    folder = tmp_path_factory.mktemp("run")
    make_adapter(DEMO_MODEL, folder / "adapter")
    model = adapter_model(DEMO_MODEL, folder / "adapter").model
    merge(model, DEMO_MODEL, folder / "adapter", "float16", folder / "merged_16bit")
    return folder


def test_what_is_called_tested_runs(run: Path) -> None:
    settings = demo_settings("grpo").model_dump(mode="json")
    actual = snippets(settings, {"merged_16bit": Exported("merged_16bit")}, None)
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
