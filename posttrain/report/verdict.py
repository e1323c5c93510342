"""Did it improve, and how sure is that: the verdict on the headline measure of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from eval import figures
from eval.measures import Change, direction, kind
from posttrain.run.record import Run, number

WORDS = {1: "improved", 0: "no measurable change", -1: "got worse"}
TONES = {1: "good", 0: "flat", -1: "bad"}
TRAINING = {
    "GRPO": ("reward", "Reward"),
    "SFT": ("loss", "Loss"),
    "DPO": ("rewards/margins", "Margin"),
}


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


def verdict(run: Run) -> Verdict:
    """One sentence on the headline measure; further ones on what it hides."""
    changes, name = run.changes(), run.headline
    if name is None:
        return _no_scores(run)
    result = judged(name, changes[name], [*_remarks(name, changes), *losses(name, changes)])
    trained = run.environment.trained
    if trained and trained.steps == 0 and trained.exit_code is None:
        nothing = "Nothing was trained (training.max_steps is 0)."
        return replace(result, sentence=f"{nothing} {result.sentence}")
    return result


def judged(name: str, change: Change, remarks: list[str], seeds: int = 0) -> Verdict:
    """The verdict on a change, or with `seeds` on the mean of as many runs."""
    way, better = direction(name, change), kind(name).better
    before, after = (figures.plain(name, side.value) for side in (change.before, change.after))
    label, moved = figures.label(name), figures.moved(name, change.difference)
    if seeds:
        went = f"went from {before} to {after}, the mean of {seeds} seeds"
    elif way:
        went = f"{'rose' if way == better else 'fell'} from {before} to {after}"
    elif change.difference == 0:
        went = f"stayed at {after}"
    else:
        went = f"went from {before} to {after}" + ", which chance alone can explain" * bool(better)
    over = " over seeds and questions" if seeds else ""
    counted = "" if seeds else f", {change.n} {kind(name).of}"
    sure = f"95% interval{over} {figures.span(name, change)}, {figures.p_is(change.p_value)}"
    sentence = f"{capital(label)} {went}: {moved} ({sure}{counted})."
    label += f", mean of {seeds} seeds" if seeds else ""
    return Verdict(TONES[way], WORDS[way], sentence, label, before, after, moved, remarks)


def _no_scores(run: Run) -> Verdict:
    if not run.metrics:
        sentence = "Nothing is logged yet. Scores before and after are compared once it is done."
        return Verdict("open", "not trained yet", sentence)
    of = f" of {run.total_steps}" if run.total_steps is not None else ""
    written = f", last written {run.written:%Y-%m-%d %H:%M %Z}" if run.written else ""
    logged = f"Step {run.steps}{of} is logged{written}."
    word, why = "no scores yet", "Scores before and after are compared once the last step is done"
    if run.section("run").get("score") is False:
        word, why = "not scored", "As run.score is false, the held-out data are not scored"
    sentence = f"{logged} {why}; below is training alone."
    return Verdict("open", word, sentence, remarks=_so_far(run))


def _so_far(run: Run) -> list[str]:
    """How the training metric moved: not a score, so it is a remark."""
    key, label = TRAINING.get(run.method, TRAINING["DPO"])
    values = [v for row in run.metrics if (v := number(row.get(key))) is not None]
    if len(values) < 4:
        return []
    tenth = max(1, len(values) // 10)
    first, last = (sum(part) / tenth for part in (values[:tenth], values[-tenth:]))
    return [f"{label} on training data went from {first:.2f} to {last:.2f}."]


def _remarks(judged_by: str, changes: Mapping[str, Change]) -> list[str]:
    """What the headline hides."""
    of, heads = judged_by[: judged_by.rfind("/") + 1], kind(judged_by).heads
    gain, lenient = changes[judged_by].difference or 0.0, changes.get(f"{of}lenient", Change())
    deeper = gain if lenient.difference is None else lenient.difference
    if heads == "numbers" and gain > 0 and deeper < gain / 2:
        return [
            "Most of the gain is format: read leniently (the last number in the reply counts), "
            f"accuracy changed by {figures.change('lenient', lenient)}."
        ]
    if heads == "pairs" and changes[judged_by].before.value == 0.5:
        return [
            "Before training it is 50% by construction: the policy is the reference, and prefers "
            "neither reply."
        ]
    return []


def losses(judged_by: str, changes: Mapping[str, Change]) -> list[str]:
    """What got worse beyond chance, beside the headline."""
    return [
        f"Got worse: {figures.label(name)}, {figures.change(name, change)}."
        for name, change in changes.items()
        if name != judged_by and direction(name, change) < 0
    ]


def capital(text: str) -> str:
    return text[0].upper() + text[1:]
