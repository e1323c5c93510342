"""A secret in the settings or on the command line is refused by name, and its value never shown."""

from pathlib import Path

import pytest

from posttrain.base.errors import ConfigError
from posttrain.settings import DPOSettings, GRPOSettings
from posttrain.settings.secrets import check_arguments, check_values, is_secret_name, kind_of_secret
from tests.helpers import ROOT, demo_settings
from tests.unit.conftest import Ask

# Made up here; each has the form of the real thing.
HUB, WANDB, OPENAI = (
    "hf_" + "aB3" * 11 + "x",
    "0123456789abcdef" * 2 + "deadbeef",
    "sk-" + "a1B-" * 9,
)
VALUES = {
    "Hugging Face token": HUB,
    "W&B key": WANDB,
    "API key": OPENAI,
    "GitHub token": "ghp_" + "Zz9" * 12,
    "AWS key": "AKIA" + "ABCD1234" * 2,
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl",
    "password in a URL": "http://reader:pa55word@models.example/v1",
}
DEMO = ROOT / "configs" / "dpo_demo.yaml"


OTHER_VALUES = (
    *("Qwen/Qwen2.5-0.5B-Instruct", "hf_internal", "jpacifico/french-orca-dpo-pairs-revised"),
    *("/hub/models--a--b/snapshots/" + WANDB + "/", "http://127.0.0.1:8080/v1", "5e-6"),
    *("Solve the problem: the ask-for-help-desk-of-the-town costs 3.", "user@host:path/x", ""),
    *("sk-learn-compared-with-everything-else", "hf://datasets/juletxara/mgsm/mgsm_fr.tsv"),
)


def test_names_of_secrets() -> None:
    for name in ("token", "HF_TOKEN", "hubToken", "apiKey", "openai-api-key", "use_auth_token"):
        assert is_secret_name(name), name
    for name in ("db_password", "secret_key", "aws_access_key_id", "credentials", "apikey"):
        assert is_secret_name(name), name
    for name in ("pad_token", "max_new_tokens", "tokenizer", "key", "author", "secretary"):
        assert not is_secret_name(name), name


def test_no_name_of_a_setting_or_trainer_argument_is_refused_but_the_hubs_token() -> None:
    from posttrain.settings.extra import config_fields
    from posttrain.settings.help import describe

    paths = {*describe(DPOSettings), *describe(GRPOSettings)}
    names = [path.rpartition(".")[2] for path in paths]
    assert len(names) > 80
    for config_class in ("dpo_config.py:DPOConfig", "grpo_config.py:GRPOConfig"):
        names += config_fields(f"trl/trainer/{config_class}")
    assert {name for name in names if is_secret_name(name)} == {"hub_token"}


@pytest.mark.parametrize("kind", VALUES)
def test_values_that_look_like_secrets_and_others(kind: str) -> None:
    assert kind in str(kind_of_secret(VALUES[kind]))
    if kind != "W&B key":  # 40 digits within a text are a commit as a rule
        assert kind in str(kind_of_secret(f"Bearer {VALUES[kind]}"))
    assert [text for text in OTHER_VALUES if kind_of_secret(text)] == []


def test_forty_hexadecimal_digits_are_a_commit_where_a_revision_is_asked_for() -> None:
    check_values({"model": {"revision": WANDB}, "data": {"train": {"revision": WANDB}}}, "x.yaml")
    check_arguments([f"model.revision={WANDB}"])
    with pytest.raises(ConfigError, match=r"model\.name holds a W&B key"):
        check_values({"model": {"name": WANDB}}, "x.yaml")


def test_the_value_of_a_secret_variable_is_known_whatever_its_form(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct horse battery")
    assert kind_of_secret("so: correct horse battery.") == "the value of MY_SERVICE_TOKEN"
    monkeypatch.setenv("OTHER_TOKEN", str(tmp_path))  # a file that holds one is none itself
    assert kind_of_secret(f"{tmp_path}/run") is None
    monkeypatch.setenv("SHORT_TOKEN", "cosine")  # too short to know that it is meant
    assert kind_of_secret("a cosine schedule") is None


@pytest.mark.parametrize(
    "override",
    [
        "training.extra={hub_token: abc}",
        "password=abc",
        *(f"run.name={value}" for value in VALUES.values() if "\n" not in value),
        f"data.train={{path: x, token: {HUB}}}",
        f"tracking.report_to=[wandb, {WANDB}]",
    ],
)
def test_overrides(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        demo_settings("dpo", override)
    message = str(caught.value)
    assert "environment variable" in message
    assert "abc" not in message.replace("abcdef", "")
    assert not any(value in message for value in VALUES.values())


def test_a_misspelt_number_of_tokens_gets_its_own_message() -> None:
    check_arguments(["evaluation.max_new_token=5"])
    with pytest.raises(ConfigError, match="Did you mean 'max_new_tokens'"):
        demo_settings("dpo", "evaluation.max_new_token=5")


CONFIG = ["grpo", "--config", "configs/grpo_demo.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*CONFIG, f"training.extra.hub_token={HUB}"], "error: training.extra.hub_token"),
        ([*CONFIG, f"--api-key={OPENAI}"], "error: --api-key"),
        ([*CONFIG, HUB], "error: argument 3"),
        (["evaluate", "--model", VALUES["password in a URL"]], "argument 2 holds a password in a "),
        (["dpo", "--config", "FOLDER/mine.yaml"], "FOLDER/mine.yaml: run.hub_token: a secret has "),
    ],
)
def test_a_command_refuses_them(words: list[str], message: str, ask: Ask, tmp_path: Path) -> None:
    text = DEMO.read_text(encoding="utf-8").replace("run:\n", f"run:\n  hub_token: {HUB}\n")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    result = ask(*(word.replace("FOLDER", str(tmp_path)) for word in words))
    assert (result.returncode, result.stdout) == (2, "")
    assert message.replace("FOLDER", str(tmp_path)) in result.stderr
    assert "HF_TOKEN" in result.stderr
    assert not any(value in result.stderr for value in VALUES.values())
