"""Which language a reply is written in, by py3langid (its model ships in the package)."""

import functools

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
