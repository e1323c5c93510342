"""The data report as text for the terminal, in aligned lines that fit it."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from posttrain.base.terminal import entry, prose_width

LINES = 6  # of each part of an example
BOUNDARY = "¦"  # between two tokens
LABEL = 24


def render_text(report: dict[str, Any]) -> str:
    """The complete report. The warnings come last, where they are seen."""
    sections = [
        _rows(report["rows"]),
        _tokens(report["tokens"]),
        _length_bias(report["length_bias"]),
        _languages(report["languages"]),
        _copies(report["copies"]),
        _questions(report["evaluation_questions"]),
        _examples(report["examples"]),
        render_warnings(report),
    ]
    return "\n\n".join(section for section in sections if section).rstrip("\n")


def render_warnings(report: dict[str, Any]) -> str:
    """The warnings, each a paragraph that ends in a newline."""
    paragraphs = [
        textwrap.fill(f"warning: {w['text']}.", prose_width(), subsequent_indent="  ")
        for w in report["warnings"]
    ]
    return "".join(f"{paragraph}\n" for paragraph in paragraphs)


def _section(head: str, entries: Iterable[tuple[str, str]]) -> str:
    return "\n".join([head, *(entry(label, value) for label, value in entries)])


def _rows(rows: dict[str, Any]) -> str:
    entries = [("read", str(rows["read"]))]
    entries += [("left out", f"{count}: {why}") for why, count in rows["dropped"].items()]
    train, held_out = rows["train"], rows["held_out"]
    entries.append(("kept", f"{rows['kept']} ({train} to train on, {held_out} held out)"))
    if rows["validation"]:
        entries.append(("set aside", f"{rows['validation']} to validate on"))
    return _section("Rows", entries)


def _tokens(tokens: dict[str, Any]) -> str:
    names = ("min", "median", "p95", "max")
    labels = {name: name for name in ("prompt", "chosen", "rejected")}
    labels["whole"] = "prompt + longer + EOS"
    lines = [f"{'Tokens':<{LABEL + 2}}" + "".join(f"{name:>8}" for name in names)]
    for part, label in labels.items():
        lines.append(f"  {label:<{LABEL}}" + "".join(f"{tokens[part][name]:>8}" for name in names))
    over = tokens["over_limit"]
    count = f"{over['pairs']} of {over['of']} ({over['share']:.1%})"
    return "\n".join([*lines, entry(f"over {tokens['limit']}", count)])


def _interval(measure: dict[str, Any]) -> str:
    return f"{measure['value']:.1%} [{measure['low']:.1%}, {measure['high']:.1%}]"


def _length_bias(bias: dict[str, Any]) -> str:
    entries = []
    if bias["pairs"]:
        counts = f"{bias['chosen_longer']} of {bias['pairs']}"
        rest = f"{bias['chosen_shorter']} shorter, {bias['same_length']} the same"
        share = _interval(bias["chosen_longer_share"])
        prefer = _interval(bias["prefer_the_longer_accuracy"])
        entries.append(("chosen is longer", f"{counts}, {share}; {rest}"))
        entries.append(("'prefer the longer'", f"{prefer} right"))
    entries.append(("length-controlled", f"accuracy {bias['length_controlled_accuracy']}"))
    return _section("Length bias (in tokens, 95% intervals)", entries)


def _languages(languages: dict[str, Any]) -> str:
    sampled = languages["sampled"]
    return _section(
        f"Languages ({sampled} of {languages['of']} pairs)",
        (
            (part, ", ".join(f"{name} {n / sampled:.1%}" for name, n in languages[part].items()))
            for part in ("prompt", "chosen", "rejected")
        ),
    )


def _copies(copies: dict[str, Any]) -> str:
    return _section(
        "Copies (case, punctuation and spacing aside)",
        (
            ("same pair again", str(copies["same_pair"])),
            ("same prompt again", str(copies["same_prompt"])),
            ("nearly the same prompt", f"{copies['near_prompt']} ({copies['near_rule']})"),
            ("held out, near training", str(copies["near_prompt_across_the_split"])),
            ("identical replies", str(copies["identical_replies"])),
        ),
    )


def _questions(overlap: dict[str, Any] | None) -> str:
    if overlap is None:
        return ""
    count = f"in {overlap['pairs']} prompts ({overlap['rule']})"
    return _section("Evaluation questions", [(f"{overlap['questions']} checked", count)])


def _examples(examples: Sequence[dict[str, Any]]) -> str:
    """Each part of an example in a few lines, with BOUNDARY between tokens, and newlines as ⏎."""
    lines = []
    for number, example in enumerate(examples, start=1):
        lines.append(entry(f"{number}", example["where"]))
        for part in ("masked", "chosen", "rejected"):
            labels = [f"{part} ({len(example[part])})"] + [""] * LINES
            shown = zip(labels, _token_lines(example[part]), strict=False)
            lines += [f"  {label:<{LABEL}}{line}" for label, line in shown]
    head = f"Examples ({BOUNDARY} between tokens; masked tokens get no loss)"
    return "\n".join([head, *lines]) if lines else ""


def _token_lines(tokens: Sequence[str]) -> list[str]:
    """The tokens in at most LINES lines, without the middle; lines break between tokens."""
    width = prose_width() - LABEL - 2
    lines = [""]
    for number, token in enumerate(tokens, start=1):
        visible = token.replace("\n", "⏎").replace("\t", "⇥")
        visible = "".join(c if c.isprintable() else "·" for c in visible)
        visible += BOUNDARY * (number < len(tokens))
        if lines[-1] and len(lines[-1]) + len(visible) > width:
            lines.append("")
        lines[-1] += visible if len(visible) <= width else f"{visible[: width - 1]}…"
    return lines if len(lines) <= LINES else [*lines[: LINES - 2], "...", lines[-1]]
