"""What replies are like: language (by py3langid, which ships its model), length, how they end,
repetition, how likely a policy finds them, and how far it moved from the reference."""

import functools
import math
from collections.abc import Sequence

from eval import Completion, MeasuredReply

# Naming the candidates makes short replies far more reliable than all 97 languages would be.
CANDIDATES = ("fr", "en", "es", "de", "it", "pt", "nl")


@functools.cache
def _identifier(wanted: str):  # type: ignore[no-untyped-def]  # py3langid has no type information
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(sorted({*CANDIDATES, wanted}))
    return identifier


def is_known(language: str) -> bool:
    """Whether `language` is the ISO 639 code of a language that is detected, such as fr."""
    if language in CANDIDATES:
        return True
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return language in LanguageIdentifier.from_model_file(MODEL_FILE).labels


def detect(text: str, wanted: str = "fr") -> str | None:
    """ISO 639 code of the text's language among CANDIDATES and `wanted`, None without letters."""
    if not any(character.isalpha() for character in text):
        return None
    language, _ = _identifier(wanted).classify(text)
    return str(language)


def measure(completions: Sequence[Completion], language: str = "fr") -> list[MeasuredReply]:
    """What the text and the length of each completion show."""
    return [
        MeasuredReply(
            c.text,
            c.tokens or 0,
            not c.truncated,
            detect(c.text, language) == language,
            repetition(c.text),
        )
        for c in completions
    ]


def repetition(text: str, n: int = 4) -> float:
    """The share of a text's n-grams that repeat an earlier one: 1 - unique n-grams / n-grams.

    seq-rep-n of Welleck et al., 2019 (https://arxiv.org/abs/1908.04319), over words parted by
    white space, so that it is the same for every tokenizer. 0.0 below n words.
    """
    words = text.split()
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def kl_per_token(policy: Sequence[float], reference: Sequence[float]) -> float:
    """KL(policy || reference) in nats, the mean over the tokens of a reply that the policy sampled.

    Takes both models' log-probabilities of its tokens. Each token is estimated by k3 = r - 1 - ln r
    with r = reference / policy (Schulman, 2020, http://joschu.net/blog/kl-approx.html): never
    negative, and unbiased where the token was sampled from the policy itself, at temperature 1.
    """
    ratios = [r - p for p, r in zip(policy, reference, strict=True)]
    # expm1(x) - x, not exp(x) - 1 - x, which loses small values to rounding
    return max(0.0, math.fsum(math.expm1(ratio) - ratio for ratio in ratios) / len(ratios))


def losses(log_probs: Sequence[Sequence[float]]) -> list[float]:
    """The loss of each reply in nats: minus the mean of the log-probabilities of its tokens, the
    end-of-sequence token included."""
    return [-sum(tokens) / len(tokens) for tokens in log_probs]


def scores(
    replies: Sequence[MeasuredReply],
    language: str = "fr",
    without_system: Sequence[MeasuredReply] = (),
) -> dict[str, list[float]]:
    """Per measure, one score a reply; `language` is the one that they were measured by. Of
    `without_system`, replies to the same prompts without their system turns, only the language is
    scored: a prompt that names one hides it."""
    share = "french_share" if language == "fr" else "language_share"
    shares = {share: [float(reply.in_language) for reply in replies]}
    if without_system:
        shares[f"{share}_without_system"] = [float(r.in_language) for r in without_system]
    return {
        **shares,
        "ended_share": [float(reply.ended) for reply in replies],
        "mean_tokens": [float(reply.tokens) for reply in replies],
        "repetition_rate": [reply.repetition for reply in replies],
    }
