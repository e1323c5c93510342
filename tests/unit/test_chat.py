"""The chat without a model: sources, memory, commands, output and saved files."""

import builtins
import json
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eval import Completion, Conversation, PromptFormat
from eval.gsm8k import Problem
from posttrain.base.errors import ConfigError, DataError
from posttrain.chat import source, terminal
from posttrain.chat.conversation import NOTHING, Known, Side, Talk, held_out_questions, load_known
from posttrain.scoring import reward_functions
from posttrain.settings import Prompt
from tests.helpers import ROOT, Capsys
from tests.runs import dpo_run, grpo_run, unfinished
from tests.unit.conftest import Ask, make_config, write_file
from tests.unit.test_server import Reply, Server, api

__all__ = ["api"]
PLAIN = PromptFormat()


def first_problem(name: str) -> str:
    path = ROOT / "assets" / "demo_data" / f"problems_{name}.jsonl"
    return str(json.loads(path.read_text("utf-8").splitlines()[0])["question"])


def of_one(stream: Any, **more: Any) -> Talk:
    return Talk([Side("reply", stream, "")], None, **more)


class Parrot:
    """Answers with a given text, in pieces, and keeps its requests."""

    def __init__(self, text: str, complete: bool = True) -> None:
        self.text, self.complete = text, complete
        self.requests: list[tuple[Conversation, int]] = []
        self.closed = 0

    def stream(self, conversation: Conversation, seed: int) -> Generator[Completion, None, None]:
        self.requests.append((list(conversation), seed))
        try:
            for end in range(1, len(self.text) + 1):
                yield Completion(self.text[:end], end, truncated=True)
            yield Completion(self.text, len(self.text), truncated=not self.complete)
        finally:
            self.closed += 1


@pytest.fixture
def parrots() -> tuple[Parrot, Parrot]:
    return Parrot("first"), Parrot("second\n<answer>7</answer>")


@pytest.fixture
def talk(parrots: tuple[Parrot, Parrot]) -> Talk:
    before, after = parrots
    return Talk([Side("before", before.stream, "a"), Side("after", after.stream, "b")], "Be brief.")


def roles(conversation: Conversation) -> list[str]:
    return [turn["role"] for turn in conversation]


def test_each_side_remembers_its_own_replies(talk: Talk, parrots: tuple[Parrot, Parrot]) -> None:
    for question in ("one?", "two?"):
        talk.ask(question)
        for side in talk.sides:
            *_, last = talk.answer(side)
            assert not last.truncated
    for parrot in parrots:
        conversation, seed = parrot.requests[1]
        assert roles(conversation) == ["system", "user", "assistant", "user"]
        assert conversation[2]["content"] == parrot.text and conversation[3]["content"] == "two?"
        assert seed == 1
    talk.reset(None)
    talk.ask("three?")
    list(talk.answer(talk.sides[0]))
    assert parrots[0].requests[2] == ([{"role": "user", "content": "three?"}], 0)


def test_a_stopped_reply_is_remembered(talk: Talk, parrots: tuple[Parrot, Parrot]) -> None:
    talk.ask("one?")
    with closing(talk.answer(talk.sides[0])) as replies:
        next(replies), next(replies)
    assert parrots[0].closed == 1
    assert talk.turns["before"][-1]["content"] == "fi" == talk.rows[0]["before"]
    with closing(talk.answer(talk.sides[1])):
        pass  # stopped before it began
    assert "after" not in talk.turns or talk.turns["after"] == []


def typed(monkeypatch: pytest.MonkeyPatch, lines: Iterable[str]) -> None:
    """Let input() give these lines, and then the end of the input."""
    given = iter(lines)

    def answer(prompt: str) -> str:
        print(prompt, end="")
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", answer)


def test_a_conversation(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: Capsys, tmp_path: Path
) -> None:
    file = tmp_path / "talk.jsonl"
    lines = ["one?", f"/save {file}", f"/save {file}", "/system", "/system Sois bref.", "two?"]
    typed(monkeypatch, [*lines, "/rest", "/help", "/system -", "/quit", "never"])
    terminal.converse(talk)
    output = capsys.readouterr().out
    assert output.startswith("before  a\nafter   b\nSystem prompt: Be brief.\n")
    assert "> before  first\nafter   second\n        <answer>7</answer>\n" in output
    assert f"Saved 1 questions and their replies in {file}" in output and "already" in output
    assert "the system prompt: Be brief." in output and "no system prompt." in output
    assert "There is no command /rest. Did you mean '/reset'?" in output and "/save FILE" in output
    (row,) = map(json.loads, file.read_text("utf-8").splitlines())
    assert row == {
        "question": "one?",
        "system": "Be brief.",
        "before": "first",
        "after": "second\n<answer>7</answer>",
    }
    assert talk.system is None and talk.turns == {}


def test_each_line_is_alone(talk: Talk, parrots: tuple[Parrot, Parrot], capsys: Capsys) -> None:
    terminal.answer_lines(talk, ["\ufeffOù ?\n".encode(), b"\n", b"/reset\n"])
    replies = "before  first\nafter   second\nafter   <answer>7</answer>\n\n"
    assert capsys.readouterr().out == f"> Où ?\n{replies}> /reset\n{replies}"
    assert all(roles(each) == ["system", "user"] for each, _ in parrots[0].requests)
    with pytest.raises(DataError, match="line 2 of standard input is not UTF-8"):
        terminal.answer_lines(talk, [b"a\n", "Où ?".encode("latin-1")])


def test_a_cut_reply_with_control_characters(capsys: Capsys) -> None:
    parrot = Parrot("a\x1b[2Jb\rc\n\n", complete=False)
    terminal.answer_once(of_one(parrot.stream), "?")
    cut = "[cut after 10 tokens (--max-new-tokens, or the context is full)]"
    assert capsys.readouterr().out == f"> ?\nreply  a[2Jbc\n       {cut}\n\n"


def test_what_cannot_be_asked_or_saved(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: Capsys, tmp_path: Path
) -> None:
    lines = ["/save", "/save x", "/system caf\udcc3", "caf\udcc3 ?", "café ?"]
    places = (f"{tmp_path}/no/such", "~nosuchuser/x", "x" * 300)
    typed(monkeypatch, [*lines, *(f"/save {place}" for place in places)])
    terminal.converse(talk)  # until the end of the input
    output = capsys.readouterr()
    for part in ("name a file", "no question to save yet", "error: that is not UTF-8"):
        assert part in output.out
    assert output.err.count("No such file or directory") == 2 and "too long" in output.err
    assert [row["question"] for row in talk.rows] == ["café ?"]


def test_a_line_without_a_reply_does_not_end_the_others(capsys: Capsys) -> None:
    def full(conversation: Conversation, seed: int) -> Generator[Completion, None, None]:
        if conversation[-1]["content"] == "long?":
            raise ConfigError("the conversation takes 5000 tokens")
        yield Completion("fine", 1, truncated=False)

    with pytest.raises(ConfigError, match="takes 5000 tokens"):
        terminal.answer_lines(of_one(full), [b"one?", b"long?", b"two?"])
    output = capsys.readouterr().out
    assert output.count("reply  fine") == 2 and "takes 5000 tokens" in output


def test_an_answer_ends_a_reply_where_the_run_was_scored_so() -> None:
    parrot = Parrot("so\n<answer>7</answer> and more")
    talk = of_one(parrot.stream, stop_at_answer=True)
    talk.ask("?")
    *_, last = talk.answer(talk.sides[0])
    assert (last.text, last.truncated) == ("so\n<answer>7</answer>", False)
    assert parrot.closed == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = grpo_run(tmp_path_factory.mktemp("runs") / "grpo", steps=2)
    return make_config(run / "adapter").parent


def test_rewards_of_known_questions(run: Path, capsys: Capsys) -> None:
    known = load_known(source.find(str(run)))
    for question in map(first_problem, ("train", "test")):
        gold = known.gold(question)
        assert gold is not None
        right = Completion(f"So.\n<answer>{gold}</answer>", 9, truncated=False)
        copied = question.replace(" ", " \n", 1)
        assert known.rewards(copied, right, PLAIN) == {"format": 1, "correctness": 2, "total": 3}
        wrong = Completion("<answer>-1</answer> perhaps", 9, truncated=False)
        assert known.rewards(copied, wrong, PLAIN) == {"format": 0, "correctness": 0, "total": 0}
    assert known.gold("Who?") is None and known.rewards("Who?", right, PLAIN) == {}
    talk = of_one(Parrot(right.text).stream, known=known)
    terminal.answer_once(talk, question)
    note = f"       [format 1, correctness 2, total 3, right answer {gold}]\n"
    assert note in capsys.readouterr().out
    assert talk.rows[-1]["rewards"] == {"reply": {"format": 1, "correctness": 2, "total": 3}}


def test_no_python_of_a_run_folder_is_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    mine = "def always(completions, **_):\n    return [1.0] * len(completions)\n"
    theirs = f"open({str(tmp_path / 'ran')!r}, 'w')\n{mine}"
    (run / "adapter" / "theirs.py").write_text(theirs)
    (tmp_path / "mine.py").write_text(mine)
    monkeypatch.chdir(run.parent)
    model = source.find(str(run))
    module = f"{run.name}.adapter.theirs"
    for name in (run / "adapter" / "theirs.py", "grpo/adapter/theirs.py", module):
        model.run["rewards"] = {f"{name}:always": 1.0}
        assert load_known(model) is NOTHING
        assert "is Python in the run folder" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is Python in the run folder"):
        reward_functions.load(model.run["rewards"], "number", Path(run.name))
    assert not (tmp_path / "ran").exists()
    model.run["rewards"] = {f"{tmp_path / 'mine.py'}:always": 1.0}
    known = load_known(model)
    reply = Completion("x", 1, truncated=False)
    assert known.rewards(first_problem("test"), reply, PLAIN) == {"always": 1.0, "total": 1.0}


def test_without_rewards_there_is_the_reply(run: Path, capsys: Capsys) -> None:
    model = source.find(str(run))
    model.run["data"]["train"]["path"] = "gone.jsonl"
    assert load_known(model) is NOTHING
    assert "note: replies are shown without rewards: " in capsys.readouterr().err

    def broken(**_: object) -> list[float]:
        raise KeyError("column")

    known = Known({"?": Problem("?", "1")}, {"broken": broken}, {"broken": 1.0})
    terminal.answer_once(of_one(Parrot("yes").stream, known=known), "?")
    note = "reply  yes\n       [no rewards: rewards: reward 'broken' raised"
    assert note in capsys.readouterr().out


def test_held_out_questions(run: Path, tmp_path: Path) -> None:
    model = source.find(str(run))
    assert held_out_questions(model, 3) == ["What is 0 + 1?", "What is 1 + 1?", "What is 2 + 1?"]
    pairs = make_config(dpo_run(tmp_path / "dpo", steps=2) / "adapter").parent
    assert held_out_questions(source.find(str(pairs)), 2) == ["Question 0 ?", "Question 1 ?"]
    (pairs / "eval" / "after_replies.jsonl").write_text("{", "utf-8")
    assert held_out_questions(source.find(str(pairs)), 2) == []


def test_sources(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_run = source.find(str(run))
    assert of_run.kind == "adapter" and of_run.model == str(run / "adapter")
    assert of_run.folder == run and of_run.prompt.system == of_run.run["prompt"]["system"] != ""
    assert source.find(str(run / "adapter")) == of_run
    (tmp_path / "best").symlink_to(run / "adapter")
    assert source.find(str(tmp_path / "best")).folder == run
    alone = source.find("assets/demo_model")
    assert (alone.kind, alone.run, alone.folder, alone.prompt.system) == ("model", {}, None, None)
    assert source.find("Qwen/Qwen2.5-0.5B-Instruct").model == "Qwen/Qwen2.5-0.5B-Instruct"
    assert source.find("http://127.0.0.1:1/x.gguf").kind == "url"
    gguf = source.find(str(write_file(run / "gguf" / "m.gguf", b"GGUF")))
    assert gguf.kind == "gguf" and gguf.folder == run
    odd = source.Source("model", "x", {"model": "gpt2", "prompt": "Be brief."})
    assert (odd.trained_length, odd.prompt) == (0, Prompt())
    (tmp_path / "outputs" / "mine").mkdir(parents=True)
    monkeypatch.setattr(source, "ROOT", tmp_path)
    for name, message in (
        ("mine", r"no model 'mine' here\. Did you mean '.*outputs/mine'"),
        ("outputs/no_such_run", "there is no folder 'outputs/no_such_run'."),
        ("no_such.gguf", "there is no file 'no_such.gguf'"),
        (str(ROOT / "docs"), "holds no model: there is no adapter_config.json, config.json or ad"),
    ):
        with pytest.raises(ConfigError, match=message):
            source.find(name)


def test_an_unfinished_run_names_its_checkpoint(tmp_path: Path) -> None:
    run = unfinished(grpo_run(tmp_path / "early", steps=3), steps=2)
    with pytest.raises(ConfigError, match=r"not finished.* again to resume it$"):
        source.find(str(run))
    step = make_config(run / "checkpoints/step-000002")
    with pytest.raises(ConfigError, match=r"not finished.*\n.* chat .*/step-000002$"):
        source.find(str(run))
    assert source.find(str(step)).folder == run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["assets/demo_modle"], "Did you mean 'assets/demo_model'?"),
        (["assets/demo_model", "--temperature", "-1"], "--temperature: must be 0 or more, got -1"),
        (["assets/demo_model", "--question", " "], "--question needs a text"),
        (["assets/demo_model", "--seed", "5000000000"], "--seed: must be a whole number below"),
        (["~nosuchuser/x"], "there is no folder '~nosuchuser/x'."),
        (["x" * 300], "xxx…' cannot be opened (file name too long); name a file or a folder"),
        (["assets/demo_model", "--examples", f"{{{'x' * 300}}}"], "--examples: examples: '{xxxx"),
        (["assets/demo_model", "--web", "--port", "70000"], "--port 70000: the page cannot be"),
        (["assets/demo_model", "--web", "--port", "TAKEN"], "in use"),
    ],
)
def test_refusals_before_anything_is_loaded(
    ask: Ask, api: Server, arguments: list[str], message: str
) -> None:
    port = str(api.server_address[1])
    given = (port if word == "TAKEN" else word for word in arguments)
    result = ask("chat", *given, cwd=ROOT)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


def events(*pieces: str, reason: str | None = "stop") -> Reply:
    """A reply as server-sent events, with a comment and the usage that some servers send."""
    choices = [{"delta": {"content": piece}, "finish_reason": None} for piece in pieces]
    rows = [{"choices": [each]} for each in (*choices, {"delta": {}, "finish_reason": reason})]
    lines = [": hello", *(f"data: {json.dumps(row, ensure_ascii=False)}" for row in rows)]
    return 200, "\n\n".join([*lines, 'data: {"choices": [], "usage": {}}', "data: [DONE]", ""])


def stream(api: Server) -> list[Completion]:
    from posttrain.model.server import Server, parameters
    from posttrain.settings import Evaluation

    sent = parameters(Evaluation(max_new_tokens=9), {"enable_thinking": False})
    return list(Server(api.url, sent).stream([{"role": "user", "content": "?"}], 3))


def test_a_server_streams(api: Server) -> None:
    api.plan = lambda *_: events("Là, ", "🙂", " é")
    assert [reply.text for reply in stream(api)] == ["Là, ", "Là, 🙂", "Là, 🙂 é", "Là, 🙂 é"]
    (body,) = api.bodies
    assert body["stream"] and body["model"] == "tiny" and body["seed"] == 3
    assert body["max_tokens"] == 9 and body["temperature"] == 0
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    *early, last = stream(api)
    assert all(reply.truncated for reply in early) and not last.truncated and last.tokens == 3
    api.plan = lambda *_: events("cut", reason="length")
    assert stream(api)[-1].truncated


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((404, "no such model"), "no such model"),
        ((200, 'data: {"error": {"message": "out of slots"}}\n\n'), "out of slots"),
        ((200, "data: nonsense\n\n"), "nonsense"),
        (events("a", reason=None), "ended its answer"),
        ((0, ""), "broke off its answer"),
    ],
)
def test_errors_of_a_server(api: Server, reply: Reply, message: str) -> None:
    api.plan = lambda *_: reply
    with pytest.raises(ConfigError, match=message):
        stream(api)
