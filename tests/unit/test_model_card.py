"""The model card of a run folder, and its upload to a hub (real client, server on localhost)."""

import base64
import json
import shlex
import subprocess
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from posttrain.base.errors import ConfigError
from posttrain.base.files import append_rows
from posttrain.export.hub import to_upload
from posttrain.report.model_card import render_model_card
from posttrain.settings.strict_yaml import dump_yaml, read_yaml
from tests.helpers import CONFIGS, run_script, settings_of
from tests.runs import grpo_run
from tests.unit.conftest import make_config, write_file
from tests.unit.test_server import Handler, serving


def export(path: str, proven: bool, name: str, value: float, limit: float) -> dict[str, Any]:
    check = {"name": name, "value": value, "limit": limit, "passed": proven}
    return {"path": path, "proven": proven, "bytes": 10, "checks": [check]}


PROVEN = export("merged_16bit", True, "largest logit difference", 0.0012, 0.01)
UNPROVEN = export("gguf/m-q4_k_m.gguf", False, "perplexity change", 0.7, 0.1)


def make_run(folder: Path, config: str = "grpo_demo", **changes: Any) -> Path:
    """A finished run with these settings, around an adapter of a few bytes."""
    grpo_run(folder, steps=2)
    settings = settings_of(config).model_dump(mode="json")
    for path, value in changes.items():
        section, key = path.split("__")
        settings[section][key] = value
    (folder / "config.yaml").write_text(dump_yaml(settings), encoding="utf-8")
    adapter = make_config(folder / "adapter", base_model_name_or_path="/home/someone/models/base")
    (adapter / "README.md").write_text("peft's own card")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def add_exports(run: Path, exports: dict[str, dict[str, Any]]) -> None:
    (run / "export.json").write_text(json.dumps({"exports": exports}))
    for each in exports.values():
        path = run / each["path"]
        write_file(path if path.suffix else path / "model.safetensors", b"weights")


@pytest.mark.parametrize("config", [path.stem for path in CONFIGS])
def test_every_config_gets_a_card(tmp_path: Path, config: str) -> None:
    text = render_model_card(make_run(tmp_path / "run", config))
    _, metadata, _ = text.split("---\n", 2)
    front = yaml.safe_load(metadata)
    if "_3b_" in config:
        assert (front["license"], front["license_name"]) == ("other", "qwen-research")
    else:
        assert front["license"] == "apache-2.0" and "license_name" not in front
    assert "| strict accuracy | 10.0% [4.7%, 20.1%] | 75.0% [62.8%, 84.2%] | +65.0 points" in text
    assert "< 1e-6" in text
    assert "licence not known" not in text
    body = text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(body) == read_yaml(tmp_path / "run" / "config.yaml")


def test_exports_are_shown_with_their_parity_and_only_proven_ones_uploaded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    add_exports(run, {"merged_16bit": PROVEN, "gguf:q4_k_m": UNPROVEN})
    text = render_model_card(run)
    for part in (
        "| merged_16bit | `merged_16bit` | yes | largest logit difference: 0.0012",
        "| **no** | perplexity change: 0.7 (at most 0.1), **failed**",
        'AutoModelForCausalLM.from_pretrained("merged_16bit"',
        "### vLLM (not tested by the project)",
        "llama-cli -m gguf/m-q4_k_m.gguf --temp 0 -sys",
    ):
        assert part in text
    assert [f.name for f in to_upload(run, ["merged_16bit"])] == ["model.safetensors"]
    uploaded = render_model_card(run, "me/m", ["gguf:q4_k_m"])  # to the top folder, and alone
    assert "llama-cli -m m-q4_k_m.gguf" in uploaded and "from_pretrained" not in uploaded
    adapter = render_model_card(run, "me/m")
    assert 'AutoPeftModelForCausalLM.from_pretrained("me/m"' in adapter
    assert "llama-cli" not in adapter and "vllm serve" not in adapter
    for name in ("gguf:q4_k_m", "gguf:f16"):
        with pytest.raises(ConfigError, match=f"no proven export {name}; proven are: merged_16bit"):
            to_upload(run, ["merged_16bit", name])


def test_variables_of_the_chat_template_are_in_every_command(tmp_path: Path) -> None:
    variables = {"enable_thinking": False, "style": "it's"}
    run = make_run(tmp_path / "run", prompt__chat_template_kwargs=variables)
    add_exports(run, {"merged_16bit": PROVEN, "gguf:q4_k_m": {**UNPROVEN, "proven": True}})
    text = render_model_card(run)
    assert text.count('return_dict=True, enable_thinking=False, style="it\'s"\n)') == 2
    quoted = shlex.quote(json.dumps(variables))
    assert f"vllm serve --default-chat-template-kwargs {quoted} merged_16bit" in text
    assert f"--temp 0 --chat-template-kwargs {quoted} -sys" in text
    assert "render it with the same ones" in text
    plain = render_model_card(make_run(tmp_path / "plain"))
    assert "kwargs" not in plain.partition("## Settings")[0]


def test_no_folder_of_this_machine_is_named_and_what_was_not_done_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", model__name="/home/someone/models/mine")
    for name in ("metrics.jsonl", "eval/before.json", "eval/after.json", "eval/comparison.json"):
        (run / name).unlink()
    rows = [{"step": 1, "seconds": 600.0}, {"step": 2, "seconds": 60.0}]  # resumed in between
    append_rows(run / "metrics.jsonl", rows)
    text = render_model_card(run)
    assert "/home/someone" not in text
    for part in (
        *("`mine`", "licence not known", "2 steps, 11 min 00 s"),
        "The evaluation after training has not been run",
        "None yet: the folder holds the adapter alone",
    ):
        assert part in text
    with pytest.raises(ConfigError, match="no run there"):
        render_model_card(tmp_path)


class Hub(Handler):
    """The part of the hub's API that an upload of small files uses."""

    created: ClassVar[list[dict[str, Any]]] = []
    files: ClassVar[dict[str, bytes]] = {}
    refuse: ClassVar[bool] = False

    def do_GET(self) -> None:
        self.send(404, "")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        answer = self._answer(body)
        if self.refuse:
            self.send(401, {"error": "Invalid username or password."})
        else:
            self.send(200, answer, {"Content-Type": "application/json"})

    def _answer(self, body: bytes) -> Any:
        where = f"http://{self.headers['Host']}/someone/model"
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": where}
        if "/preupload/" in self.path:
            how = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": f["path"], **how} for f in json.loads(body)["files"]]}
        if "/commit/" in self.path:
            for line in body.decode().split("\n"):
                row = json.loads(line) if line else {}
                if row.get("key") == "file":
                    self.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            return {"commitUrl": f"{where}/commit/abc", "commitOid": "abc"}
        return {"errors": [], "warnings": []}


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.created, Hub.files, Hub.refuse = [], {}, False
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Hub)) as url:
        yield url


SECRET = "hf_sentinel"


def upload(run: Path, hub: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = (run, "--push", "someone/model", *arguments)
    return run_script("export", *words, HF_ENDPOINT=hub, HF_TOKEN=SECRET, HF_HUB_OFFLINE="0")


def test_the_adapter_is_uploaded_privately_with_the_card(tmp_path: Path, hub: str) -> None:
    """Where no export is named."""
    run = make_run(tmp_path / "run")
    result = upload(run, hub)
    assert result.returncode == 0, result.stderr
    assert f"Uploaded to {hub}/someone/model" in result.stdout
    assert Hub.created[0]["name"] == "model"
    assert Hub.created[0]["visibility"] == "private"
    assert set(Hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert b"# someone/model" in Hub.files["README.md"]
    assert b'from_pretrained("someone/model"' in Hub.files["README.md"]
    assert json.loads(Hub.files["adapter_config.json"])["base_model_name_or_path"] == "base"
    assert not list(run.glob(".push-*"))
    assert SECRET not in result.stdout + result.stderr
    alone = upload(run / "adapter", hub, "--output", tmp_path / "o")
    assert alone.returncode == 2 and "there is no model card" in alone.stderr


@pytest.mark.parametrize("away", [False, True], ids=["refuses", "is out of reach"])
def test_a_hub_that_is_of_no_use_is_one_line(tmp_path: Path, hub: str, away: bool) -> None:
    Hub.refuse = True
    result = upload(make_run(tmp_path / "run"), "http://127.0.0.1:9" if away else hub)
    assert result.returncode == 2
    assert "--push someone/model: the hub refuses, or is out of reach: " in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert SECRET not in result.stdout + result.stderr
