"""The data report as text for the terminal, in aligned lines that fit it."""

import textwrap
from collections.abc import Sequence
from typing import Any

from posttrain.base.terminal import entry, prose_width

LINES = 6  # of each part of an example
BOUNDARY = "¦"  # between two tokens
LABEL = 24


def render_text(report: dict[str, Any]) -> str:
    """The whole report. The warnings come last, where they are seen."""
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


def _rows(rows: dict[str, Any]) -> str:
    dropped = [entry("left out", f"{count}: {why}") for why, count in rows["dropped"].items()]
    kept = f"{rows['kept']} ({rows['train']} to train on, {rows['held_out']} held out)"
    aside = [entry("set aside", f"{count} to validate on")] if (count := rows["validation"]) else []
    read = entry("read", str(rows["read"]))
    return "\n".join(["Rows", read, *dropped, entry("kept", kept), *aside])


def _tokens(tokens: dict[str, Any]) -> str:
    names = ("min", "median", "p95", "max")
    head = f"{'Tokens':<{LABEL + 2}}" + "".join(f"{name:>8}" for name in names)
    body = [
        f"  {label:<{LABEL}}" + "".join(f"{tokens[part][name]:>8}" for name in names)
        for part, label in (
            ("prompt", "prompt"),
            ("chosen", "chosen"),
            ("rejected", "rejected"),
            ("whole", "prompt + longer + EOS"),
        )
        if tokens[part]
    ]
    over = tokens["over_limit"]
    count = f"{over['pairs']} of {over['of']} ({over['share']:.1%})"
    return "\n".join([head, *body, entry(f"over {tokens['limit']}", count)])


def _interval(measure: dict[str, Any]) -> str:
    return f"{measure['value']:.1%} [{measure['low']:.1%}, {measure['high']:.1%}]"


def _length_bias(bias: dict[str, Any]) -> str:
    lines = ["Length bias (in tokens, 95% intervals)"]
    if bias["pairs"]:
        counts = f"{bias['chosen_longer']} of {bias['pairs']}"
        rest = f"{bias['chosen_shorter']} shorter, {bias['same_length']} the same"
        share = _interval(bias["chosen_longer_share"])
        lines += [
            entry("chosen is longer", f"{counts}, {share}; {rest}"),
            entry("'prefer the longer'", f"{_interval(bias['prefer_the_longer_accuracy'])} right"),
        ]
    controlled = bias["length_controlled_accuracy"]
    return "\n".join([*lines, entry("length-controlled", f"accuracy {controlled}")])


def _languages(languages: dict[str, Any]) -> str:
    head = f"Languages ({languages['sampled']} of {languages['of']} pairs looked at)"
    lines = []
    for part in ("prompt", "chosen", "rejected"):
        shares = [
            f"{name} {count / languages['sampled']:.1%}" for name, count in languages[part].items()
        ]
        lines.append(entry(part, ", ".join(shares)))
    return "\n".join([head, *lines])


def _copies(copies: dict[str, Any]) -> str:
    lines = [
        entry("same pair again", str(copies["same_pair"])),
        entry("same prompt again", str(copies["same_prompt"])),
        entry("nearly the same prompt", f"{copies['near_prompt']} ({copies['near_rule']})"),
        entry("held out, near training", str(copies["near_prompt_across_the_split"])),
        entry("identical replies", str(copies["identical_replies"])),
    ]
    return "\n".join(["Copies (case, punctuation and spacing aside)", *lines])


def _questions(overlap: dict[str, Any] | None) -> str:
    if overlap is None:
        return ""
    count = f"in {overlap['pairs']} prompts ({overlap['rule']})"
    return "\n".join(["Evaluation questions", entry(f"{overlap['questions']} looked for", count)])


def _examples(examples: Sequence[dict[str, Any]]) -> str:
    """Each part of an example in a few lines, with BOUNDARY between tokens, and newlines as ⏎."""
    lines = []
    for number, example in enumerate(examples, start=1):
        lines.append(entry(f"{number}", example["where"]))
        for part in ("masked", "chosen", "rejected"):
            first, *rest = _token_lines(example[part])
            lines.append(f"  {f'{part} ({len(example[part])})':<{LABEL}}{first}")
            lines += [" " * (LABEL + 2) + line for line in rest]
    head = f"Examples ({BOUNDARY} between tokens; masked tokens get no loss)"
    return "\n".join([head, *lines]) if lines else ""


def _token_lines(tokens: Sequence[str]) -> list[str]:
    """The tokens in at most LINES lines, without the middle; lines break between tokens."""
    width = prose_width() - LABEL - 2
    lines = [""]
    for number, token in enumerate(tokens):
        visible = token.replace("\n", "⏎").replace("\t", "⇥")
        visible = "".join(c if c.isprintable() else "·" for c in visible)
        visible += BOUNDARY if number + 1 < len(tokens) else ""
        if lines[-1] and len(lines[-1]) + len(visible) > width:
            lines.append("")
        while len(visible) > width:  # a token can be a long run of spaces
            lines[-1], visible = visible[:width], visible[width:]
            lines.append("")
        lines[-1] += visible
    if len(lines) > LINES:
        lines = [*lines[: LINES - 2], "...", lines[-1]]
    return lines
