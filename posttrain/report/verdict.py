"""Did it improve, and how sure is that: one sentence on a run's headline measure."""

from dataclasses import dataclass, field

from posttrain.run import measures
from posttrain.run.record import SIDES, Record, Row, number, section

WORDS = {1: "improved", 0: "no measurable change", -1: "got worse"}


@dataclass(frozen=True)
class Verdict:
    """Did it improve, and how sure is that."""

    tone: str
    """`good`, `flat`, `bad` or `open` (no scores yet)."""
    word: str
    sentence: str
    measure: str = ""
    before: str = ""
    after: str = ""
    change: str = ""
    remarks: list[str] = field(default_factory=list)


def verdict(record: Record) -> Verdict:
    """One sentence on the headline measure; further ones on what it hides."""
    found = record.measures()
    name = measures.headline(record.method, found)
    if name is None:
        return _no_scores(record)
    values = found[name]
    direction = measures.direction(name, values)
    sentence = _sentence(name, values, measures.things(record.method, name))
    if record.environment.get("trained") == {"steps": 0, "seconds": 0.0}:
        sentence = f"Nothing was trained (training.max_steps is 0). {sentence}"
    return Verdict(
        tone={1: "good", 0: "flat", -1: "bad"}[direction],
        word=WORDS[direction],
        sentence=sentence,
        measure=measures.label(name),
        before=measures.plain(name, values["before"].get("value")),
        after=measures.plain(name, values["after"].get("value")),
        change=measures.moved(name, values["difference"]),
        remarks=_remarks(name, found),
    )


def _sentence(name: str, values: Row, things: str) -> str:
    """`Strict accuracy rose from 2.3% to 98.7%: +96.3 points (95% interval ..., p ..., n ...).`"""
    before, after = (measures.plain(name, values[side].get("value")) for side in SIDES)
    direction = measures.direction(name, values)
    if direction:
        verb = "rose" if direction == measures.better(name) else "fell"
        said = f"{verb} from {before} to {after}"
    elif values["difference"] == 0:
        said = f"stayed at {after}"
    else:
        said = f"went from {before} to {after}"
        said += ", which chance alone can explain" if measures.better(name) else ""
    label = measures.label(name)
    sure = f"95% interval {measures.span(name, values)}, {measures.p_is(values.get('p_value'))}"
    moved = measures.moved(name, values["difference"])
    return f"{label[0].upper()}{label[1:]} {said}: {moved} ({sure}, {values.get('n')} {things})."


def _no_scores(record: Record) -> Verdict:
    of = f" of {record.total_steps}" if record.total_steps is not None else ""
    if not record.metrics:
        sentence = "Nothing is logged yet. Scores before and after are compared once it is done."
        return Verdict("open", "not trained yet", sentence)
    written = f", last written {record.written:%Y-%m-%d %H:%M %Z}" if record.written else ""
    if section(record.config, "run").get("score") is False:
        sentence = (
            f"Step {record.steps}{of} is logged{written}. As run.score is false, the held-out data "
            "are not looked at; what follows is what training shows."
        )
        return Verdict("open", "not scored", sentence, remarks=_so_far(record))
    sentence = (
        f"Step {record.steps}{of} is logged{written}. Scores before and after are compared once "
        "the last step is done; what follows is what training shows so far."
    )
    return Verdict("open", "no scores yet", sentence, remarks=_so_far(record))


def _so_far(record: Record) -> list[str]:
    """How the training metric moved: not a score, so it is a remark."""
    shown = {"GRPO": ("reward", "Reward"), "SFT": ("loss", "Loss")}
    key, label = shown.get(record.method, ("rewards/margins", "Margin"))
    values = [v for row in record.metrics if (v := number(row.get(key))) is not None]
    if len(values) < 4:
        return []
    tenth = max(1, len(values) // 10)
    first, last = (sum(part) / tenth for part in (values[:tenth], values[-tenth:]))
    return [f"{label} on training data went from {first:.2f} to {last:.2f}."]


def _remarks(judged_by: str, found: dict[str, Row]) -> list[str]:
    remarks = []
    prefix = judged_by.rpartition("/")[0]
    prefix = f"{prefix}/" if prefix else ""
    strict, lenient = found.get(f"{prefix}strict"), found.get(f"{prefix}lenient")
    if strict and lenient and judged_by.endswith("strict"):
        gain, deeper = (number(side.get("difference")) for side in (strict, lenient))
        if gain and deeper is not None and gain > 0 and deeper < 0.5 * gain:
            remarks.append(
                "Most of the gain is format: read leniently (the last number in the reply counts), "
                f"accuracy changed by {measures.change('lenient', lenient)}."
            )
    if judged_by.endswith("reward_accuracy"):
        before = number(found[judged_by]["before"].get("value"))
        if before == 0.5:
            remarks.append(
                "Before training it is 50% by construction: the policy is the reference, and "
                "prefers neither reply."
            )
    for name, values in found.items():
        if name != judged_by and measures.direction(name, values) < 0:
            remarks.append(f"Got worse: {measures.label(name)}, {measures.change(name, values)}.")
    return remarks
