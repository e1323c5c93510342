"""The data report as text for the terminal, in aligned lines that fit it."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from posttrain.base.terminal import entry, prose_width

LINES = 6  # of each part of an example
BOUNDARY = "¦"  # between two tokens
LABEL = 24
PARTS = ("prompt", "chosen", "rejected")
Section = tuple[str, list[tuple[str, str]]]
"""A heading, and labels with their values."""


def render_text(report: dict[str, Any]) -> str:
    """The complete report. The warnings come last, where they are seen."""
    sections = [
        "\n".join([head, *(entry(label, value) for label, value in entries)])
        for head, entries in (*_counts(report), *_comparisons(report))
    ]
    last = [_examples(report["examples"]), render_warnings(report)]
    return "\n\n".join([*sections, *filter(None, last)]).rstrip("\n")


def render_warnings(report: dict[str, Any]) -> str:
    """The warnings, each a paragraph that ends in a newline."""
    paragraphs = [
        textwrap.fill(f"warning: {w['text']}.", prose_width(), subsequent_indent="  ")
        for w in report["warnings"]
    ]
    return "".join(f"{paragraph}\n" for paragraph in paragraphs)


def _counts(report: dict[str, Any]) -> Iterator[Section]:
    """Rows by what became of them, and their tokens."""
    rows, tokens = report["rows"], report["tokens"]
    entries = [("read", str(rows["read"]))]
    entries += [("left out", f"{count}: {why}") for why, count in rows["dropped"].items()]
    divided = f"{rows['train']} to train on, {rows['held_out']} held out"
    entries.append(("kept", f"{rows['kept']} ({divided})"))
    if rows["validation"]:
        entries.append(("set aside", f"{rows['validation']} to validate on"))
    yield "Rows", entries

    names = ("min", "median", "p95", "max")
    labels = {**{part: part for part in PARTS}, "whole": "prompt + longer + EOS"}
    entries = [
        (label, "".join(f"{tokens[part][name]:>8}" for name in names))
        for part, label in labels.items()
    ]
    over = tokens["over_limit"]
    share = f"{over['pairs']} of {over['of']} ({over['share']:.1%})"
    entries.append((f"over {tokens['limit']}", share))
    yield f"{'Tokens':<{LABEL + 2}}" + "".join(f"{name:>8}" for name in names), entries


def _comparisons(report: dict[str, Any]) -> Iterator[Section]:
    """Chosen against rejected replies, and rows against each other and evaluation questions."""
    bias, languages = report["length_bias"], report["languages"]
    copies, overlap = report["copies"], report["evaluation_questions"]
    entries = []
    if bias["pairs"]:
        counts = f"{bias['chosen_longer']} of {bias['pairs']}"
        rest = f"{bias['chosen_shorter']} shorter, {bias['same_length']} the same"
        share = _interval(bias["chosen_longer_share"])
        prefer = _interval(bias["prefer_the_longer_accuracy"])
        entries.append(("chosen is longer", f"{counts}, {share}; {rest}"))
        entries.append(("'prefer the longer'", f"{prefer} right"))
    entries.append(("length-controlled", f"accuracy {bias['length_controlled_accuracy']}"))
    yield "Length bias (in tokens, 95% intervals)", entries

    sampled = languages["sampled"]
    shares = {
        part: ", ".join(f"{name} {n / sampled:.1%}" for name, n in languages[part].items())
        for part in PARTS
    }
    yield f"Languages ({sampled} of {languages['of']} pairs)", list(shares.items())

    entries = [
        ("same pair again", str(copies["same_pair"])),
        ("same prompt again", str(copies["same_prompt"])),
        ("nearly the same prompt", f"{copies['near_prompt']} ({copies['near_rule']})"),
        ("held out, near training", str(copies["near_prompt_across_the_split"])),
        ("identical replies", str(copies["identical_replies"])),
    ]
    yield "Copies (case, punctuation and spacing aside)", entries

    if overlap is not None:
        count = f"in {overlap['pairs']} prompts ({overlap['rule']})"
        yield "Evaluation questions", [(f"{overlap['questions']} checked", count)]


def _interval(measure: dict[str, Any]) -> str:
    return f"{measure['value']:.1%} [{measure['low']:.1%}, {measure['high']:.1%}]"


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
