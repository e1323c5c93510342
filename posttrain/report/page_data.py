"""The data of a page, as plain values for its template."""

import json
import shlex
from pathlib import Path

from eval import figures
from eval.measures import Change, kind
from posttrain.base.paths import ROOT
from posttrain.base.progress import duration
from posttrain.report import tables
from posttrain.run.record import Run, Settings, number, section
from posttrain.run.results import HealthEvent, Stage


def changes(run: Run) -> tables.Table:
    """The before/after table; sides alone where no comparison was written."""
    known = run.changes()
    for name, before in run.before.items():
        if name not in known and name in run.after:
            known[name] = Change(before=before, after=run.after[name])
    return tables.compared(known)


def facts(run: Run) -> list[tuple[str, str, str]]:
    """What was trained on what: (label, value, detail)."""
    pace = f"{run.seconds / max(1, run.steps):.2g} s a step"
    data, fingerprint = source(section(run.section("data"), "train")), run.environment.data[:12]
    lines = [
        ("Model", str(run.section("model").get("name", "")), _adapter(run)),
        *(("Started from", stage, "") for stage in stages(run)),
        ("Trained on", data, f"fingerprint {fingerprint}" if fingerprint else ""),
        ("Scored on", *_held_out(run)),
        ("Steps", _steps(run), _batch(run)),
        ("Adapter", *_kept(run)),
        ("Training time", duration(run.seconds) if run.seconds else "", pace if run.steps else ""),
        ("Device", run.environment.device, ""),
    ]
    price = number(run.section("run").get("price_per_hour"))
    if price is not None and run.seconds:
        cost = run.seconds / 3600 * price
        lines.append(("Cost of training", f"{cost:.2f}", f"at {price:g} an hour, as given"))
    return [line for line in lines if line[1]]


def stages(run: Run) -> list[str]:
    """One line for each earlier stage: `warm_up: SFT, 40 steps; strict accuracy 1% -> 20%`."""
    return [_stage(stage) for stage in run.environment.stages]


def _stage(stage: Stage) -> str:
    if not stage.method:
        return f"{stage.name}: an adapter without its run (fingerprint {stage.adapter[:12]})"
    steps = "" if stage.steps is None else f", {stage.steps} steps"
    trained = f"{stage.name}: {stage.method.upper()}{steps}"
    if not (main := stage.measure):
        return trained
    before, after = (figures.plain(main, side.value) for side in (stage.before, stage.after))
    return f"{trained}; {figures.label(main)} {before} -> {after}"


def _adapter(run: Run) -> str:
    lora, model = run.section("lora"), run.section("model")
    if not lora:
        return ""
    bits = "4-bit" if model.get("load_in_4bit") else str(model.get("dtype", ""))
    return f"LoRA, rank {lora.get('r')}, on {bits} weights"


def source(values: Settings) -> str:
    """`openai/gsm8k (main, split test)` for a Source of the settings."""
    parts = [str(values["subset"])] if values.get("subset") else []
    if values.get("split") not in (None, "train"):
        parts.append(f"split {values['split']}")
    if values.get("limit"):
        parts.append(f"first {values['limit']}")
    path = str(values.get("path", ""))
    return f"{path} ({', '.join(parts)})" if parts else path


def _held_out(run: Run) -> tuple[str, str]:
    data, name = run.section("data"), run.main_measure
    rows = kind(name).of
    given = source(section(data, "problems") or section(data, "eval"))
    held_out = given or (f"held-out {rows}" if data.get("holdout") else "")
    scored = (run.after or run.before).get(name)
    n = (scored and scored.n) or len(run.replies["before"])
    return held_out, f"{n} {rows}, never trained on" if n and held_out else ""


def _steps(run: Run) -> str:
    trained = run.environment.trained
    done, total = trained.steps if trained else run.steps, run.total_steps
    return f"{done:,}" if total in (None, done) else f"{done:,} of {total:,}"


def _kept(run: Run) -> tuple[str, str]:
    """Which step's adapter the scores are of, where rows were set aside to choose it."""
    kept = run.environment.kept
    if kept is None:
        return "", ""
    seconds = sum(number(row.get("validation/seconds")) or 0.0 for row in run.metrics)
    share = f" ({seconds / run.seconds:.0%} of the training time)" if run.seconds else ""
    value = f"{figures.label(kept.by)} {figures.plain(kept.by, kept.value)}"
    if kept.before is not None:
        value += f" (before training {figures.plain(kept.by, kept.before)})"
    which = "best" if kept.best else "last"
    return f"of step {kept.step}", f"{value}, {which} of {kept.validations} validations{share}"


def _batch(run: Run) -> str:
    training = run.section("training")
    size = number(training.get("per_device_train_batch_size"))
    times = number(training.get("gradient_accumulation_steps"))
    if size is None or times is None:
        return ""
    rows, group = int(size * times), number(training.get("num_generations"))
    if run.method == "GRPO" and group:
        return f"{rows} completions each, {int(rows / group)} groups of {int(group)}"
    return f"{rows} {'replies' if run.method == 'SFT' else 'pairs'} each"


def event_figures(event: HealthEvent) -> str:
    """`value 0.5, threshold 0.1` of a health event, as far as they are known."""
    known = {"value": event.value, "threshold": event.threshold}
    return ", ".join(
        f"{name} {value if (figure := number(value)) is None else f'{figure:.4g}'}"
        for name, value in known.items()
        if value is not None
    )


def rows_report(run: Run) -> tuple[str, list[str]] | None:
    """A line on the rows of the data report, and its warnings; None where there is no report."""
    if run.data_report is None:
        return None
    rows = section(run.data_report, "rows")
    line = f"{rows.get('read', '?')} rows read, {rows.get('kept', '?')} kept"
    if "train" in rows and "held_out" in rows:
        line += f": {rows['train']} to train on, {rows['held_out']} held out"
    if rows.get("validation"):
        line += f"; {rows['validation']} more to validate on"
    left_out = [f"{count} {why}" for why, count in section(rows, "dropped").items()]
    line += f". Left out: {', '.join(left_out)}." if left_out else "."
    warnings = run.data_report.get("warnings") or []
    return line, [str(w.get("text", w)) if isinstance(w, dict) else str(w) for w in warnings]


def chat_command(run: Run) -> str | None:
    """The command that talks to the run, as it is typed in the project; None without an adapter. Of
    a run elsewhere only the name is shown: the page may be passed on."""
    if not (run.path / "adapter" / "adapter_config.json").is_file():
        return None
    inside = run.path.is_relative_to(ROOT)
    known = run.path.relative_to(ROOT) if inside else Path(run.path.name)
    return f"./run chat {shlex.quote(str(known))}"


def changed_arguments(run: Run) -> list[tuple[str, str, str]]:
    return [
        (name, json.dumps(changed.asked), json.dumps(changed.used))
        for name, changed in run.environment.changed_arguments.items()
    ]


def environment(run: Run) -> list[tuple[str, str]]:
    """Where and with what it ran, a line each."""
    facts = run.environment
    lines = {
        "started": facts.started,
        "command": " ".join(facts.command),
        "commit": facts.git,
        "data fingerprint": facts.data,
        "platform": facts.platform,
        "Python": facts.python,
        **facts.versions,
    }
    return [(name, value) for name, value in lines.items() if value]
