"""Which weights a run starts from, so that a checkpoint is not resumed on others; and how a model
is loaded: no code and no pickle of its own."""

import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.base.errors import ConfigError
from posttrain.base.files import model_fingerprint
from posttrain.model import policy, pretrained
from posttrain.settings import Model
from tests.helpers import DEMO_MODEL, ROOT
from tests.reliability.inside import succeed

pytestmark = pytest.mark.filterwarnings("error")
COMMITS = ("1" * 40, "2" * 40)


def cache(folder: Path, repository: str, commit: str) -> None:
    """What the hub's cache holds of a repository once its config was downloaded."""
    model = folder / f"models--{repository.replace('/', '--')}"
    (model / "snapshots" / commit).mkdir(parents=True)
    (model / "snapshots" / commit / "config.json").write_text("{}")
    (model / "refs").mkdir(exist_ok=True)
    (model / "refs" / "main").write_text(commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and nothing else in reach."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_folder_is_known_by_its_content() -> None:
    assert policy.base_weights(Model(name="assets/demo_model")) == model_fingerprint(DEMO_MODEL)


def test_a_hub_model_is_known_by_its_commit(hub: Path) -> None:
    model = Model(name="someone/model", load_in_4bit=False)
    for commit in COMMITS:
        cache(hub, "someone/model", commit)
        assert policy.base_weights(model) == f"someone/model@{commit}"
    pinned = model.model_copy(update={"revision": COMMITS[0]})
    assert policy.base_weights(pinned) == f"someone/model@{COMMITS[0]}"


@pytest.mark.long  # changes with the pinned Unsloth alone
def test_the_repository_that_unsloth_takes_instead_counts(hub: Path) -> None:
    """As on a GPU, in another process: importing unsloth.models patches trl for good."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from huggingface_hub import constants
constants.HF_HUB_CACHE = {str(hub)!r}
from posttrain.model import policy, runtime
from posttrain.settings import Model
from tests.e2e.test_base_weights import cache
runtime.start(False, 1)
from unsloth.models.loader_utils import get_model_name
model = Model(name="Qwen/Qwen2.5-0.5B-Instruct", revision="{COMMITS[0]}")
taken = get_model_name(model.name, load_in_4bit=True)
assert taken.startswith("unsloth/") and taken.endswith("4bit"), taken
cache(Path({str(hub)!r}), taken, "{COMMITS[1]}")
assert policy.base_weights(model) == f"{{taken}}@{COMMITS[1]}"
"""
    (hub / "scripts").mkdir()
    (hub / "scripts" / "taken.py").write_text(code)
    succeed("taken", project=hub)


def test_without_a_gpu_the_model_itself_is_taken(hub: Path) -> None:
    cache(hub, "Qwen/Qwen2.5-0.5B-Instruct", COMMITS[0])
    model = Model(name="Qwen/Qwen2.5-0.5B-Instruct", revision=COMMITS[0])
    if "unsloth.models" in sys.modules:
        pytest.skip("there is a GPU")
    assert policy.base_weights(model) == f"Qwen/Qwen2.5-0.5B-Instruct@{COMMITS[0]}"


def test_a_hub_model_out_of_reach(hub: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.name: 'someone/model' is not in reach"):
        policy.base_weights(Model(name="someone/model", load_in_4bit=False))


def test_models_are_loaded_without_code_and_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only asked of Unsloth: what reaches transformers says so."""
    import transformers

    requested: list[dict[str, Any]] = []
    original = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(*arguments: Any, **options: Any) -> Any:
        requested.append(options)
        return original(*arguments, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    pretrained.load_for_scoring("assets/demo_model", False, "float32", 64)
    assert requested
    for options in requested:
        assert options["use_safetensors"] is True
        assert not options["trust_remote_code"]
