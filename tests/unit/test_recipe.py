"""What a config amounts to, as the dry run and the doctor print it; sources in docs/recipes.md."""

import re
from pathlib import Path

import pytest

from eval.stats import wilson_interval
from posttrain.model.recipe import LEARNING_RATES, describe, learning_rate_note, recipe
from posttrain.model.shape import shape_of
from tests.helpers import CONFIGS, ROOT, settings_of

PAGE = ROOT / "docs" / "recipes.md"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize(
    ("config", "overrides", "rows", "step", "steps", "tokens"),
    [
        ("grpo_gsm8k_16gb", [], 7473, "32 prompts x 8 completions = 256 rollouts", 233, 256 * 640),
        # 467 complete generations of 16 prompts: the last step has one.
        ("grpo_gsm8k_3b_16gb", [], 7473, "256 rollouts, sampled in 2 parts", 234, 256 * 640),
        ("grpo_gsm8k_16gb", ["training.num_iterations=2"], 7473, "256 rollouts", 466, 256 * 640),
        ("dpo_french_16gb", [], 12_000, "32 pairs", 375, 32 * 2 * 1024),
    ],
)
def test_a_step_and_an_epoch(
    config: str, overrides: list[str], rows: int, step: str, steps: int, tokens: int
) -> None:
    result = recipe(settings_of(config, *overrides), rows)
    assert result.step().endswith(step)
    assert (result.steps, result.epochs, result.tokens_a_step) == (steps, 1.0, tokens)
    assert result.duration() == f"{steps} (1 epoch)" and result.tokens == steps * tokens


def test_steps_that_are_given_and_data_that_is_not_counted() -> None:
    given = recipe(settings_of("grpo_gsm8k_16gb", "training.max_steps=500"))
    assert (given.steps, given.epochs, given.duration()) == (500, None, "500")
    again = recipe(settings_of("grpo_gsm8k_16gb", "training.max_steps=500"), 7473)
    assert again.duration() == "500 (2.15 epochs)"
    unknown = recipe(settings_of("grpo_gsm8k_16gb"))
    assert (unknown.steps, unknown.tokens, unknown.duration()) == (None, None, "1 epoch")


def test_a_dry_run_says_it() -> None:
    settings = settings_of("grpo_gsm8k_16gb", "training.learning_rate=1e-3")
    output = describe(settings, shape_of(settings.model.name), 7473)
    assert "  steps             233 (1 epoch)\n" in output
    assert "38.2 million (233 x 256 x 640)" in output
    assert "7.1 GB, estimated" in output
    assert "0.001 is outside the 3e-06 to 4e-05 that docs/recipes.md" in output


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_config_is_outside_what_is_known(path: Path) -> None:
    settings = settings_of(path.stem)
    assert learning_rate_note(settings, shape_of(settings.model.name)) is None


@pytest.mark.parametrize("method", LEARNING_RATES)
def test_a_rate_outside_is_noted_for_real_models_only(method: str) -> None:
    name = {"grpo": "grpo_gsm8k_16gb", "dpo": "dpo_french_16gb", "sft": "sft_demo"}[method]
    low, high = LEARNING_RATES[method]
    demo, real = (shape_of(model) for model in ("assets/demo_model", "Qwen/Qwen3-0.6B"))
    for rate, inside in ((low, True), (high, True), (low / 2, False), (high * 2, False)):
        settings = settings_of(name, f"training.learning_rate={rate}")
        assert (learning_rate_note(settings, real) is None) == inside
        assert learning_rate_note(settings, demo) is None
        assert learning_rate_note(settings, None) is None


def test_intervals_on_the_page_are_wilsons_and_configs_are_there() -> None:
    """Each score in percent with its interval, on as many questions as its benchmark has."""
    text = PAGE.read_text(encoding="utf-8")
    for path in CONFIGS:
        assert path.stem.endswith(("demo", "cpu")) or f"`{path.stem}`" in text, path.stem
    scores = [
        (515 if "IFEval" in line else 1319, *numbers)
        for line in text.splitlines()
        for numbers in re.findall(r"(\d+\.\d) \[(\d+\.\d), (\d+\.\d)\]", line)
    ]
    assert len(scores) == 9
    for n, score, low, high in scores:
        interval = wilson_interval(round(float(score) / 100 * n), n)
        assert [f"{100 * bound:.1f}" for bound in interval] == [low, high], score
