"""What a page says about a run, as plain values for its template."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.base.progress import duration
from posttrain.report import export_words, stages
from posttrain.run import measures
from posttrain.run.record import SIDES, Record, Row, number, section


@dataclass(frozen=True)
class Change:
    """One line of the before/after table, every cell as text."""

    of: str
    """The set of problems that was scored beside the run's own; empty for these."""
    name: str
    n: str
    before: str
    before_interval: str
    after: str
    after_interval: str
    change: str
    change_interval: str
    p_value: str
    tone: str


def changes(record: Record) -> list[Change]:
    """The lines of the before/after table; sides alone where no comparison was written."""
    found = record.measures()
    for name in (*record.before, *record.after):
        sides = {side: getattr(record, side).get(name) for side in SIDES}
        if name not in found and any(isinstance(values, dict) for values in sides.values()):
            found[name] = {side: values or {} for side, values in sides.items()}
    tones = {1: "good", 0: "", -1: "bad"}
    lines = []
    for name, values in found.items():
        before, after = values["before"], values["after"]
        of, _, own = name.rpartition("/")
        p = values.get("p_value")
        lines.append(
            Change(
                of=measures.set_label(of) if of else "",
                name=measures.label(own),
                n=str(values.get("n", after.get("n", before.get("n", "-")))),
                before=measures.plain(name, before.get("value")) if before else "-",
                before_interval=measures.interval(name, before),
                after=measures.plain(name, after.get("value")) if after else "-",
                after_interval=measures.interval(name, after),
                change=measures.moved(name, values.get("difference")),
                change_interval=measures.span(name, values),
                p_value=measures.p_is(p) if p is not None else "",
                tone=tones[measures.direction(name, values)],
            )
        )
    return lines


def facts(record: Record) -> list[tuple[str, str, str]]:
    """What was trained on what: (label, value, detail)."""
    model, lora, training, data, run = (
        section(record.config, name) for name in ("model", "lora", "training", "data", "run")
    )
    environment = record.environment
    found = [
        ("Model", str(model.get("name", "")), _adapter(lora, model)),
        *(("Started from", line, "") for line in stages.lines(record)),
        ("Trained on", source(section(data, "train")), _fingerprint(environment)),
        ("Scored on", *_held_out(record, data)),
        ("Steps", _steps(record), _batch(record, training)),
        ("Adapter", *_kept(record)),
        ("Training time", duration(record.seconds) if record.seconds else "", _pace(record)),
        ("Device", str(environment.get("device", "")), ""),
    ]
    price = number(run.get("price_per_hour"))
    if price is not None and record.seconds:
        cost = record.seconds / 3600 * price
        found.append(("Cost of training", f"{cost:.2f}", f"at {price:g} an hour, as given"))
    return [fact for fact in found if fact[1]]


def _adapter(lora: Row, model: Row) -> str:
    if not lora:
        return ""
    bits = "4-bit" if model.get("load_in_4bit") else str(model.get("dtype", ""))
    return f"LoRA, rank {lora.get('r')}, on {bits} weights"


def source(values: Row) -> str:
    """`openai/gsm8k (main, split test)` for a Source of the settings."""
    parts = [str(values["subset"])] if values.get("subset") else []
    if values.get("split") not in (None, "train"):
        parts.append(f"split {values['split']}")
    if values.get("limit"):
        parts.append(f"first {values['limit']}")
    return (
        f"{values.get('path', '')} ({', '.join(parts)})" if parts else str(values.get("path", ""))
    )


def _fingerprint(environment: Row) -> str:
    data = environment.get("data")
    return f"fingerprint {data[:12]}" if isinstance(data, str) else ""


def _held_out(record: Record, data: Row) -> tuple[str, str]:
    given = source(section(data, "problems") or section(data, "eval"))
    held_out = given or (
        f"held-out {measures.things(record.method, record.main_measure)}"
        if data.get("holdout")
        else ""
    )
    name = record.main_measure
    n = section(record.after or record.before, name).get("n") or len(record.replies["before"])
    what = measures.things(record.method, name)
    return held_out, f"{n} {what}, never trained on" if n and held_out else ""


def _steps(record: Record) -> str:
    trained = number(section(record.environment, "trained").get("steps"))
    done = record.steps if trained is None else int(trained)
    total = record.total_steps
    return f"{done:,}" if total in (None, done) else f"{done:,} of {total:,}"


def _kept(record: Record) -> tuple[str, str]:
    """Which step's adapter the scores are of, where rows were set aside to choose it."""
    kept = record.kept
    if not kept:
        return "", ""
    seconds = sum(number(row.get("validation/seconds")) or 0.0 for row in record.metrics)
    share = f", in {seconds / record.seconds:.0%} of the time" if record.seconds else ""
    name = str(kept.get("by", ""))
    on = f"{measures.label(name)} {measures.plain(name, number(kept.get('value')))} in validation"
    return f"of step {kept.get('step')}", f"{on}, made {kept.get('validations')} times{share}"


def _batch(record: Record, training: Row) -> str:
    sizes = [
        number(training.get(k))
        for k in ("per_device_train_batch_size", "gradient_accumulation_steps")
    ]
    if None in sizes:
        return ""
    rows = int((sizes[0] or 0) * (sizes[1] or 0))
    group = number(training.get("num_generations"))
    if record.method == "GRPO" and group:
        return f"{rows} completions each, {int(rows / group)} groups of {int(group)}"
    return f"{rows} {'replies' if record.method == 'SFT' else 'pairs'} each"


def _pace(record: Record) -> str:
    if not record.steps or not record.seconds:
        return ""
    return f"{record.seconds / record.steps:.2g} s a step"


def health(record: Record) -> list[Row] | None:
    """Health events with their words, newest last; None where nothing was watched."""
    if record.health is None:
        return None
    return [
        {
            "step": event.get("step", "?"),
            "kind": str(event.get("kind", "")).replace("_", " "),
            "message": str(event.get("message", "")),
            "detail": ", ".join(
                f"{key} {_figure(event[key])}"
                for key in ("value", "threshold")
                if event.get(key) is not None
            ),
            "action": str(event.get("action") or ""),
        }
        for event in record.health
    ]


def data_warnings(record: Record) -> tuple[str, list[str]] | None:
    """A line on the rows of the data report, and its warnings; None where there is no report."""
    if record.data_report is None:
        return None
    rows = section(record.data_report, "rows")
    line = f"{rows.get('read', '?')} rows read, {rows.get('kept', '?')} kept"
    if "train" in rows and "held_out" in rows:
        line += f": {rows['train']} to train on, {rows['held_out']} held out"
    if rows.get("validation"):
        line += f"; {rows['validation']} more to validate on"
    left_out = [f"{count} {why}" for why, count in section(rows, "dropped").items()]
    line += f". Left out: {', '.join(left_out)}." if left_out else "."
    warnings = record.data_report.get("warnings")
    texts = [str(w.get("text", w)) if isinstance(w, dict) else str(w) for w in warnings or []]
    return line, texts


def exports(record: Record) -> list[Row]:
    """Each export with its size and parity checks as text."""
    found = []
    for name, values in record.exports.items():
        if not isinstance(values, dict):
            continue
        size = number(values.get("bytes"))
        found.append(
            {
                "name": name,
                "path": str(values.get("path", "")),
                "size": export_words.size(size) if size else "",
                "proven": bool(values.get("proven")),
                "checks": [
                    {
                        **dict(
                            zip(
                                ("name", "value", "limit"),
                                export_words.in_words(check),
                                strict=True,
                            )
                        ),
                        "passed": bool(check.get("passed")),
                    }
                    for check in values.get("checks") or []
                    if isinstance(check, dict)
                ],
            }
        )
    return found


def _figure(value: Any) -> str:
    found = number(value)
    return f"{found:.4g}" if found is not None else "" if value is None else str(value)


def flips(record: Record, rights: Sequence[tuple[bool, bool]]) -> list[tuple[str, int]]:
    """How many replies changed which way, given `samples.pairs`' two judgements of each."""
    counts = Counter(rights)
    if record.text_answers:
        return [
            ("earned more after", counts[False, True]),
            ("earned less after", counts[True, False]),
            ("earned the same", counts[True, True]),
        ]
    good, bad = (
        ("right language", "another language") if record.method == "DPO" else ("right", "wrong")
    )
    return [
        (f"{bad} before, {good} after", counts[False, True]),
        (f"{good} before, {bad} after", counts[True, False]),
        (f"{good} both times", counts[True, True]),
        (f"{bad} both times", counts[False, False]),
    ]
