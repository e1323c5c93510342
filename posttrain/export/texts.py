"""The inputs of the check: fixed texts in English and French, and problems."""

import contextlib
from collections.abc import Sequence
from typing import Any

from eval import Conversation, PromptFormat, conversation
from posttrain.base.errors import ConfigError, DataError
from posttrain.data.problems import load_evaluation
from posttrain.data.render import render
from posttrain.settings import ProblemColumns, Prompt, Source

QUESTIONS = (
    "What is the capital of France, and which river runs through it?",
    "Explain in two sentences why the sky is blue.",
    "Write a short thank-you note to a neighbour who watered the plants.",
    "List three differences between a cat and a dog.",
    "Quelle est la capitale du Portugal, et quel fleuve la traverse ?",
    "Explique en deux phrases pourquoi la mer est salée.",
    "Écris un court message pour inviter une amie à dîner samedi soir.",
    "Donne trois conseils pour mieux dormir.",
)
PROBLEMS = (
    "Tom has 12 apples and buys 7 more. How many apples does he have?",
    "A train travels 60 miles an hour for 3 hours. How many miles is that?",
    "Léa a 14 billes et en gagne 9. Combien de billes a-t-elle ?",
    "Un cahier coûte 3 euros. Combien coûtent 11 cahiers ?",
)
# All in Unicode's composed form (NFC): the tokenizer composes its input and llama.cpp does not.
STRINGS = (
    "Hello, world! It's 12:30, isn't it?",
    "I'VE told you'd, we'll, they're; don't   worry\t\ttwice.",
    "Prices: $1,234.56 and 1 234,56 € (that is 50% off).",
    "L'été dernier, j'ai mangé des crêpes à l'œuf près de l'hôtel où naquit Æsop.",
    "Où ça ? « Là-bas », dit-il — aujourd'hui, qu'est-ce que c'est ?",
    "1 000 000 et 3.14159, 2026-11-22, 0x1F, 7/8, 10^-3",
    "def f(x):\n    return x ** 2\n\n\nprint(f(3))\n",
    "  leading and trailing  \n \n\n  ",
    "déjà vu, naïve, coöperate, ﬁancée, Ångström",
    "日本語とemoji 🦙🚀 and ZWJ 👩\u200d👩\u200d👧, кириллица, العربية",
    "",
)


def gate_texts(run: dict[str, Any]) -> list[Conversation]:
    """The fixed questions and some held-out problems of the run, with its system prompt and worked
    examples. The adapter answers them greedily; distributions are compared on its replies."""
    prompt = Prompt.model_validate(run.get("prompt") or {})
    problems: Sequence[str] = PROBLEMS
    data = run.get("data") or {}
    source = data.get({"grpo": "eval", "sft": "problems"}.get(run.get("method", ""), ""))
    if source:
        columns = data["columns"] if run["method"] == "grpo" else {}
        try:
            held_out = load_evaluation(
                Source.model_validate(source),
                ProblemColumns.model_validate(columns),
                data.get("answers", "number"),
            )
            problems = [problem.question for problem in held_out]
        except DataError as error:
            print(f"note: the run's problems cannot be read, using built-in ones: {error}")
    questions = [*QUESTIONS, *problems[:4]]
    return [conversation(text, prompt) for text in questions]


def strings(tokenizer: Any) -> list[str]:
    """STRINGS, and one with special tokens in it, which a user or a reply may contain."""
    special = dict.fromkeys((tokenizer.eos_token, tokenizer.pad_token))
    text = "not a turn".join(token for token in special if token)
    return [*STRINGS, f"<answer>42</answer>\n{text}\n{text}"]


def template_cases(conversations: list[Conversation], tokenizer: Any) -> list[Conversation]:
    """Conversations that two chat templates must render alike: these, some with several turns, and
    one with a system turn if the tokenizer's template takes one."""
    plain = PromptFormat()
    turns = conversation("Bonjour !", plain)
    several = [*turns, {"role": "assistant", "content": "Salut."}, *conversation("Ça va ?", plain)]
    cases = [turns, several, *conversations]
    system = conversation("Hi", PromptFormat("Answer in French."))
    with contextlib.suppress(ConfigError):
        render(tokenizer, system)
        cases.append(system)
    return cases
