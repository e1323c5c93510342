"""Settings of `data`: where rows come from and how they are read."""

from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.settings.section import Section


class Source(Section):
    """Where rows come from."""

    path: str
    """A local .json, .jsonl, .csv, .tsv or .parquet file (a text file may have .gz after it), a
    dataset folder, a name on the hub, or one file there as hf://datasets/OWNER/NAME/FILE. A .tsv
    file has a header, or, as MGSM's, a question and an answer on each line."""
    subset: str | None = None
    """The hub's configuration name, such as `main` for openai/gsm8k."""
    split: str = "train"
    """The split to take from a hub dataset or a dataset folder."""
    revision: str | None = None
    """The hub revision."""
    limit: int | None = Field(None, ge=1)
    """Use only the first rows."""


class Data(Section):
    train: Source
    """Rows to train on."""
    validation: int = Field(0, ge=0)
    """Rows of `train` to set aside and score while training, chosen by a hash of their question or
    prompt. The adapter that does best on them is kept, see `run.keep`. 0 validates nothing."""
    overlong: Literal["error", "drop"] = "error"
    """What to do with a row that does not fit the length limit: refuse the run, or drop and count
    the row. Rows are never cut."""


class PairColumns(Section):
    """Names of columns. Those that a format of `data.format` gives another name are in brackets."""

    prompt: str = "prompt"
    """Column of the user's turn, or of the messages up to it [orca: question]."""
    chosen: str = "chosen"
    """Column of the preferred reply."""
    rejected: str = "rejected"
    """Column of the other reply."""
    system: str | None = None
    """Column of the row's system turn, replaced by a `prompt.system` [orca: system]."""
    language: str = "lang"
    """Column of the row's language, for `data.language` [comparia_turns: metadata.languages]."""
    first: str = "conversation_a"
    """Column of an arena's first conversation [comparia_turns: full_conversation_a]."""
    second: str = "conversation_b"
    """Column of an arena's second conversation [comparia_turns: full_conversation_b]."""
    choice: str = "choice"
    """Column of an arena's vote: a side, a tie, or the name of one of the two models."""
    turn: str | None = None
    """Column of the turn that a vote is about, from 0; null: the last [comparia_turns: turn]."""
    ignored: list[str] | None = None
    """Columns and keys of messages that the model should not see, such as an id. A message that
    holds more than role, content and these is unusable, and so is a row with `tools` or `images`
    [comparia, comparia_turns: what an arena keeps of each message]."""


ARENA_KEYS = ["metadata", "num_tokens", "user_content", "reasoning_content"]
FORMAT_COLUMNS: dict[str, dict[str, Any]] = {
    "comparia": {"ignored": ARENA_KEYS},
    "orca": {"prompt": "question", "system": "system"},
    "comparia_turns": {
        "language": "metadata.languages",
        "first": "full_conversation_a",
        "second": "full_conversation_b",
        "turn": "turn",
        "ignored": ARENA_KEYS,
    },
}
PairFormat = Literal[
    "columns", "orca", "messages", "conversational", "oasst", "comparia", "comparia_turns"
]


class _FormatColumns(Data):
    """Data whose pair format has its own column names."""

    @model_validator(mode="before")
    @classmethod
    def _names_of_the_format(cls, values: Any) -> Any:
        """Fill in the format's column names, so that they are in the run's record."""
        if not isinstance(values, dict) or not isinstance(values.get("columns", {}), dict):
            return values
        pair_format = values.get("pair_format", values.get("format"))
        names = FORMAT_COLUMNS.get(str(pair_format), {})
        return {**values, "columns": {**names, **values.get("columns", {})}} if names else values


class PairData(_FormatColumns):
    format: Literal[PairFormat, "replies"] = "columns"
    """How a row holds its pair. columns: three columns of text; orca: the same and a system turn;
    messages: conversations that share all but the last turn (UltraFeedback); conversational:
    prompt, chosen and rejected as messages; oasst: text with the earlier turns in the prompt;
    comparia: two conversations and a vote; comparia_turns: the same, with a row for each turn;
    replies: the replies.jsonl of ./run evaluate --samples, the best against the worst reply to a
    question."""
    columns: PairColumns = PairColumns()
    """Which columns of the dataset hold what."""
    language: str | None = None
    """Keep only the rows whose `columns.language` is this, such as fr; the others are dropped and
    counted. The share of replies in it is then measured, as language_share; null and fr: as
    french_share. *_share_without_system is the same without a system turn."""
    unusable: Literal["error", "drop"] = "error"
    """What to do with a row that teaches nothing (equal replies, an empty one) or holds more than
    text in turns (tool calls, images): refuse the run, or leave out and count the row."""
    eval: Source | None = None
    """Separate held-out pairs; without it `holdout` prompts are split off."""
    holdout: int = Field(200, ge=1)
    """Pairs to hold out of training, chosen by a hash of their prompt."""
    check_against: list[Source] = Field([])
    """Evaluation questions (column `question`, as in GSM8K and MGSM) to look for in the prompts."""


class Keep(Section):
    reward: float = 3.0
    """Least total reward of a reply that is kept: 3 is the right number in the right form."""
    per_question: int = Field(2, ge=1)
    """Most replies kept of a question, the shortest first."""


class ReplyColumns(PairColumns):
    reply: str = "reply"
    """Column of the reply to learn [columns]."""
    messages: str = "messages"
    """Column of a conversation that ends in the reply [messages]."""
    question: str = "question"
    """Column of the question [solutions]."""
    answer: str = "answer"
    """Column of the solution, text that ends in `#### number` as in GSM8K [solutions]."""


class ReplyData(_FormatColumns):
    format: Literal["columns", "messages", "chosen", "solutions", "replies"] = "columns"
    """How a row holds its reply. columns: prompt and reply; messages: a conversation that ends in
    it; chosen: the chosen side of a pair, of `pair_format`; solutions: GSM8K's own solutions, which
    make a small model worse; replies: the replies.jsonl of ./run evaluate, of which `keep` takes
    the best, without the worked examples that they were sampled with."""
    pair_format: PairFormat = "columns"
    """With format chosen: how a row holds its pair, as data.format of a DPO config."""
    columns: ReplyColumns = ReplyColumns()
    """Which columns of the dataset hold what."""
    keep: Keep = Keep()
    """With format replies: which of them to learn from."""
    unusable: Literal["error", "drop"] = "error"
    """What to do with a row that has no reply, or more than the model would see: refuse the run, or
    leave out and count the row."""
    eval: Source | None = None
    """Held-out rows in a separate file; without it `holdout` prompts are split off."""
    holdout: int = Field(20, ge=1)
    """Rows to hold out of training, chosen by a hash of their prompt, for the loss before and
    after."""
    problems: Source | None = None
    """Problems to answer before and after (columns question and answer, as in GSM8K); the rows of
    `validation` are then answered too where they are problems."""


class ProblemColumns(Section):
    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the solution: a number, or text that ends in `#### number` as in GSM8K. Around it,
    as in a reply, $ € £ % and a final full stop are ignored. Any text with data.answers: text."""


class ProblemSet(Source):
    """Problems to score before and after a DPO run, as a check that nothing was lost."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What its measures are called by, as in mgsm_fr/strict."""
    split: str = "test"
    language: Literal["en", "fr"] = "en"
    """Language of the questions, and so of the system prompt that requires steps and a tag."""
    max_new_tokens: int = Field(640, ge=1)
    """Longest reply; a reply that is cut counts as wrong. Replies are greedy."""
    columns: ProblemColumns = ProblemColumns()
    """Which columns of the dataset hold what."""


class PassRate(Section):
    replies: str
    """The replies.jsonl of ./run evaluate --samples, or its folder."""
    low: float = Field(0.1, ge=0, le=1)
    """Least share of a problem's replies that earned the highest reward seen."""
    high: float = Field(0.9, ge=0, le=1)
    """Largest such share."""


class ProblemData(Data):
    columns: ProblemColumns = ProblemColumns()
    """Which columns of the dataset hold what."""
    answers: Literal["number", "text"] = "number"
    """What gold answers are. text: they go to `rewards` as they are, stripped; these must be your
    functions, and their totals are the score of the held-out problems."""
    eval: Source
    """Problems to score before and after; a question that is also trained on is refused."""
    pass_rate: PassRate | None = None
    """Leave out problems that the policy always or never solves: `{replies, low, high}`."""
