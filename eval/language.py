"""Which language a reply is written in, by py3langid (its model ships in the package)."""

import functools
from collections.abc import Sequence

# Naming the candidates makes short replies far more reliable than all 97 languages would be.
CANDIDATES = ("fr", "en", "es", "de", "it", "pt", "nl")


@functools.cache
def _identifier():  # type: ignore[no-untyped-def]  # py3langid has no type information
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(CANDIDATES))
    return identifier


def detect(text: str) -> str | None:
    """ISO 639-1 code of the text's language among CANDIDATES, None where it has no letters."""
    if not any(character.isalpha() for character in text):
        return None
    language, _ = _identifier().classify(text)
    return str(language)


def in_language(replies: Sequence[str], language: str) -> list[float]:
    """1.0 for each reply written in `language`, else 0.0."""
    return [float(detect(reply) == language) for reply in replies]
