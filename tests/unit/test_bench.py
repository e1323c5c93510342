"""The benchmark's arithmetic, plans and records; what needs torch is in tests/e2e/test_bench.py."""

import json
import statistics
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from posttrain.settings import DPOSettings, GRPOSettings
from posttrain.settings.command import load_settings
from tests.bench import devices, gpu, lengths, levers
from tests.helpers import ROOT

QWEN = devices.Shape(24, 896, 4864, 14, 2, 151936, lora=0)


def test_weights_of_the_real_shape() -> None:
    """494,032,768 parameters are these, the biases of q, k and v, and the norms."""
    biases, norms = 24 * (896 + 2 * 128), (2 * 24 + 1) * 896
    assert QWEN.body + QWEN.head + biases + norms == 494_032_768


def test_flops_are_two_a_weight_and_token_and_attention() -> None:
    body, head = 357_826_560, 136_134_656
    assert QWEN.forward(1, 0) == 2 * body + 2 * 24 * 896
    assert QWEN.forward(1, 1) - QWEN.forward(1, 0) == 2 * head
    # Causal attention as a sum over positions: 4 x hidden for each key that a position sees.
    length = 1000
    exact = sum(4 * 896 * 24 * seen for seen in range(1, length + 1))
    attention = QWEN.forward(length, 0) - 2 * body * length
    assert attention == pytest.approx(exact, rel=2e-3)


def test_backward_is_as_much_as_forward_and_more_for_attention_and_lora() -> None:
    lora = devices.Shape(24, 896, 4864, 14, 2, 151936, lora=17_596_416)
    once, attention = lora.forward(500, 200), 2 * 24 * 896 * 500**2
    assert lora.train(500, 200) == 2 * once + attention + 2 * 17_596_416 * 500
    pairs = [(500, 200), (300, 100)]
    assert devices.dpo_flops(lora, pairs) == sum(lora.train(*p) + lora.forward(*p) for p in pairs)
    generated, trained = devices.grpo_flops(lora, [(100, 50)])
    assert (generated, trained) == (lora.forward(150, 50), lora.train(150, 50))


def test_decoding_reads_weights_once_a_step_and_every_live_row() -> None:
    assert QWEN.cache_bytes() == 12_288
    assert devices.decoding_bytes(QWEN, 10**9, [(10, 1)]) == 10**9 + 11 * 12_288
    # Two rows: three steps in all; caches of 11, then 21, 22, 23 tokens.
    moved = devices.decoding_bytes(QWEN, 10**9, [(10, 1), (20, 3)])
    assert moved == 3 * 10**9 + (11 + 21 + 22 + 23) * 12_288


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", (989e12, 3350e9)),
        ("NVIDIA H200", (989e12, 4800e9)),
        ("Tesla T4", (65e12, 320e9)),
        ("NVIDIA L4", (121e12, 300e9)),
        ("NVIDIA L40S", (362e12, 864e9)),
        ("NVIDIA A100-SXM4-80GB", (312e12, 2039e9)),
        ("NVIDIA A10G", (70e12, 600e9)),
        ("CPU", None),
        ("NVIDIA GeForce RTX 9999", None),
    ],
)
def test_peaks(name: str, expected: tuple[float, float] | None) -> None:
    assert devices.peaks(name) == expected
    assert devices.share(989e12, 2.0, expected[0] if expected else None) == (
        None if expected is None else round(989e12 / 2 / expected[0], 4)
    )


def test_recorded_lengths_are_the_recorded_distribution() -> None:
    drawn = list(islice(lengths.recorded_lengths(640), 20_000))
    assert statistics.median(drawn) == pytest.approx(274, rel=0.02)
    cut = sum(length > 640 for length in drawn) / len(drawn)
    assert 0.01 < cut < 0.05 and max(drawn) == 641 and min(drawn) >= 2
    assert drawn == list(islice(lengths.recorded_lengths(640), 20_000))
    small = statistics.median(islice(lengths.recorded_lengths(80), 20_000))
    assert small == pytest.approx(274 / 8, rel=0.05)


def jobs(*arguments: str) -> list[gpu.Job]:
    return gpu.plan(gpu.parse(arguments), Path("/data"), Path("/model"))


def test_plan_compares_the_shipped_configs_and_takes_turns() -> None:
    plan = jobs("--rounds", "2", "training.optim=adamw_torch")
    assert len(plan) == 12
    first = [job.name for job in plan if job.round == 0]
    assert set(first[:4]) == {"grpo: project", "grpo: stock", "dpo: project", "dpo: stock"}
    order = [job.spec["side"] for job in plan if job.round == 1 and job.spec["task"] == "grpo"]
    assert order.index("stock") < order.index("project")  # the other way round than before
    for job in plan:
        changed = "training.optim=adamw_torch" in job.spec["overrides"]
        assert changed == (job.spec["side"] == "project")
        assert (ROOT / job.spec["config"]).exists()


def test_plan_of_a_memory_limit_tries_every_card_config_at_its_longest() -> None:
    plan = jobs("--memory-limit", "15")
    shipped = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*_16gb.yaml")}
    shipped |= {f"configs/{path.name}" for path in (ROOT / "configs").glob("*_t4.yaml")}
    assert {job.spec["config"] for job in plan} == shipped
    for job in plan:
        assert job.spec["memory_limit"] == 15 and job.spec["longest"]
        assert job.spec["flash"] == ("t4" not in job.spec["config"])
        (model,) = (o for o in job.spec["overrides"] if o.startswith("model.name="))
        size = next((s for s in ("1.5b", "3b") if f"_{s}_" in job.spec["config"]), None)
        own = f"/Qwen2.5-{size.upper()}-Instruct-random" if size else "/model"
        own = "/Qwen3-0.6B-random" if "qwen3" in job.spec["config"] else own
        assert model == f"model.name={own}"


def test_sweep_has_every_lever_and_what_it_is_measured_against() -> None:
    names = [job.name for job in jobs("--sweep")]
    assert names[:2] == ["grpo: as shipped", "dpo: as shipped"]
    assert len(names) == 2 + len(levers.LEVERS) == len(set(names))
    assert [job.name for job in jobs("--lever", "dpo_16_bit", "--task", "dpo")] == [
        "dpo: as shipped",
        "dpo: dpo_16_bit",
    ]


@pytest.mark.parametrize("lever", levers.LEVERS, ids=lambda lever: lever.name)
def test_levers_are_settings_and_are_explained(lever: levers.Lever) -> None:
    settings: Any = GRPOSettings if lever.task == "grpo" else DPOSettings
    path = ROOT / gpu.CONFIGS["gpu"][lever.task]
    more = ["training.save_steps=4000"]
    changed = load_settings(settings, path, [*lever.overrides, *more])
    assert lever.environment or changed != load_settings(settings, path, more)
    notes = (ROOT / "tests" / "bench" / "NOTES.md").read_text(encoding="utf-8")
    assert f"| `{lever.name}` |" in notes


def test_keys_know_a_job_again_on_another_machine() -> None:
    here, there = (
        gpu.Job("compare", "a", 0, {"x": "/a/data"}),
        gpu.Job("compare", "a", 0, {"x": "/b"}),
    )
    assert here.key({"/a/data": "DATA"}) == there.key({"/b": "DATA"})
    assert here.key({}) != there.key({})
    done = [{"key": here.key({}), "status": "ok"}, {"key": there.key({}), "status": "cut"}]
    assert gpu.waiting([here, there], done, {}) == [there]


def test_summary_takes_medians_and_ratios_and_keeps_failures() -> None:
    def row(name: str, status: str = "ok", **values: float) -> dict[str, Any]:
        return {"part": "compare", "name": name, "status": status, **values}

    found = gpu.summary(
        [
            row("grpo: project", completions_a_second=30.0, peak_allocated_gib=4.0),
            row("grpo: project", completions_a_second=32.0, peak_allocated_gib=4.0),
            row("grpo: project", completions_a_second=40.0, peak_allocated_gib=4.2),
            row("grpo: stock", completions_a_second=8.0, peak_allocated_gib=10.0),
            row("dpo: stock", status="failed"),
        ]
    )
    assert found["compare"]["grpo: project"]["completions_a_second"] == 32.0
    assert found["compare"]["dpo: stock"]["status"] == "failed"
    assert found["project_against"] == {
        "grpo: project against stock": {"times_the_rate": 4.0, "share_of_the_peak": 0.4}
    }
    assert "| dpo: stock | failed |" in gpu.render(found)


def test_a_measurement_that_fails_is_recorded_and_one_out_of_time_is_cut(tmp_path: Path) -> None:
    spec = {"task": "dpo", "side": "project", "config": "configs/none.yaml"}
    job = gpu.Job("compare", "dpo: project", 0, spec)
    failed = gpu.run_job(job, tmp_path, {}, timeout=120)
    assert failed["status"] == "failed" and failed["exit_code"] == 1
    assert "no config file at 'configs/none.yaml'" in "\n".join(failed["log_tail"])
    cut = gpu.run_job(job, tmp_path, {}, timeout=0.2)
    assert cut["status"] == "cut"


def test_results_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    gpu.write(path, {"device": "CPU"})
    assert json.loads(path.read_text()) == {"device": "CPU"}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]
