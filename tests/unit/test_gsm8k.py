"""eval.gsm8k: how replies are scored, summed up and compared, and which problems are read."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from eval import Completion, Conversation, PromptFormat
from eval.gsm8k import (
    MEASURES,
    Problem,
    ScoredReply,
    by_problem,
    compare_replies,
    evaluate,
    rescore,
    score_reply,
    summarise,
)
from eval.stats import Measure, wilson_interval

RIGHT = "6*7=42.\n<answer>42</answer>"
WRONG = "6*7=41.\n<answer>41</answer>"


def scored(text: str, gold: str = "42", question: str = "q", sample: int = 0) -> ScoredReply:
    return score_reply(Problem(question, gold), Completion(text, 5, False), sample)


def side(rights: Sequence[bool], name: str = "q") -> list[ScoredReply]:
    return [scored(RIGHT if r else WRONG, question=f"{name}{i}") for i, r in enumerate(rights)]


@pytest.mark.parametrize(
    ("text", "strict", "tagged", "lenient", "format_rate"),
    [
        (RIGHT, 1, 1, 1, 1),
        (WRONG, 0, 0, 0, 1),
        ("42 it is.\n<answer>41</answer>", 0, 0, 0, 1),  # lenient does not look past a tag
        ("so <answer>42</answer>", 0, 1, 1, 0),  # the element is not alone on its line
        ("<answer>$42.</answer>", 0, 1, 1, 0),  # tolerated in the number, not in the form
        ("<answer>42.00</answer>\n \n", 1, 1, 1, 1),
        ("The answer is 42.", 0, 0, 1, 0),
        ("<answer>42</answer>\n<answer>42</answer>", 0, 0, 1, 1),  # two elements: none is read
        ("<answer>forty-two</answer>", 0, 0, 0, 0),
        ("42\n<answer></answer>", 0, 0, 1, 0),
        ("", 0, 0, 0, 0),
    ],
)
def test_scores(text: str, strict: int, tagged: int, lenient: int, format_rate: int) -> None:
    reply = scored(text)
    result = (reply.strict, reply.tagged, reply.lenient, reply.format_rate)
    assert result == (strict, tagged, lenient, format_rate)


def test_gold_in_thousands() -> None:
    for number, right in ("1234", 1), ("1 234", 1), ("1.234", 0):
        assert scored(f"<answer>{number}</answer>", gold="1,234").strict == right
    with pytest.raises(ValueError, match="'many' is not a number"):
        scored("1234", gold="many")


def test_rows_round_trip_through_json_and_show_a_collapse() -> None:
    ended, cut = (score_reply(Problem("q", "42"), Completion(RIGHT, 9, c)) for c in (False, True))
    assert (ended.truncated_rate, cut.truncated_rate, cut.tokens) == (0.0, 1.0, 9)
    assert replace(cut, truncated_rate=0.0) == ended
    for text in (RIGHT, WRONG, "a\u2028b \u0085 \x1c\n<answer>42</answer>", "", "é\t€"):
        reply = score_reply(Problem("q\u2028?", "42"), Completion(text, 7, True), sample=3)
        assert rescore(json.loads(json.dumps(reply.as_row()))) == reply
    row = scored("  Let us see. \n<answer>1</answer><answer>2</answer>").as_row()
    assert (row["answer_elements"], row["reasoning_characters"]) == (2, len("Let us see."))


def test_evaluate_answers_each_problem_once_in_order() -> None:
    problems = [Problem(f"What is {i}?", str(i)) for i in range(7)]
    sent: list[list[Conversation]] = []

    def generate(conversations: Sequence[Conversation]) -> list[Completion]:
        sent.append(list(conversations))
        numbers = [c[-1]["content"].removeprefix("What is ").rstrip("?") for c in conversations]
        return [Completion(f"<answer>{n}</answer>", 4, False) for n in numbers]

    replies = evaluate(problems, generate, prompt=PromptFormat("Be brief."))
    assert [r.question for r in replies] == [p.question for p in problems]
    assert all(r.strict == 1 and r.sample == 0 for r in replies)
    assert [c[0] for c in sent[0]] == [{"role": "system", "content": "Be brief."}] * 7
    assert [len(conversations) for conversations in sent] == [7]
    assert evaluate([], generate, PromptFormat()) == []
    evaluate(problems[:1], generate, PromptFormat())
    assert sent[-1] == [[{"role": "user", "content": "What is 0?"}]]


def test_by_problem_keeps_questions_apart_whatever_separators_they_hold() -> None:
    questions = ["a\u2028b", "a", "a\nb", "a\u2028b ", "b", "a\x1cb"]
    replies = [scored(RIGHT, question=q, sample=s) for s in (1, 0) for q in questions]
    groups = by_problem(replies)
    assert [g[0].question for g in groups] == sorted(questions)
    assert all([r.sample for r in g] == [0, 1] for g in groups)


def test_summary_of_single_replies() -> None:
    replies = side([True, True, False, True])
    report = summarise(replies)
    assert set(report) == {*MEASURES, "mean_tokens"}
    for name in ("strict", "tagged", "lenient"):
        assert report[name] == Measure(0.75, 4, *wilson_interval(3, 4))
    assert report["format_rate"].value == 1 and report["truncated_rate"].value == 0
    assert report["mean_tokens"] == Measure(5.0, 4, 5.0, 5.0)


def test_summary_of_several_samples() -> None:
    """Right of 4: 4, 1, 0. pass@2 of the second is 1 - C(3,2)/C(4,2) = 1/2."""
    rights = {"a": [1, 1, 1, 1], "b": [0, 0, 1, 0], "c": [0, 0, 0, 0]}
    replies = [
        scored(RIGHT if right else WRONG, question=q, sample=s)
        for q, values in rights.items()
        for s, right in enumerate(values)
    ]
    report = summarise(replies)
    right = {"strict": 1.25, "pass@1": 1.25, "pass@2": 1.5, "pass@4": 2, "majority_vote": 1}
    for name, problems in right.items():
        assert report[name].n == 3 and report[name].value == pytest.approx(problems / 3), name
    assert not {"pass@3", "pass@8"} & set(report)
    fewer = summarise(replies[:-1])  # of one problem 3 samples alone
    assert "pass@2" in fewer and "pass@4" not in fewer


@pytest.mark.parametrize(
    ("texts", "right"),
    [
        (["41", "42", "42"], 1),
        (["42", "41", "41"], 0),
        (["42", "41"], 1),  # a tie goes to the number that came first
        (["41", "42"], 0),
        (["", "", "42"], 1),  # what gives no number has no vote
        (["none", "", "no"], 0),
        (["42.00", "41", "42", "41", "<answer>42,0</answer>"], 1),  # one number, three ways
    ],
)
def test_majority_vote(texts: list[str], right: int) -> None:
    report = summarise([scored(text, sample=i) for i, text in enumerate(texts)])
    assert report["majority_vote"].value == right


def test_equal_sides_do_not_differ_and_others_are_not_compared() -> None:
    replies = side([True, False, True])
    for other in (replies[:2], side([True, False, True], "p"), [*replies, *side([True], "z")]):
        with pytest.raises(ValueError, match="do not answer the same problems"):
            compare_replies(replies, other)
    comparison = compare_replies(replies, replies[::-1])
    assert list(comparison) == list(MEASURES)
    for values in comparison.values():
        assert values.difference == 0 and values.low <= 0 <= values.high
        assert values.p_value == 1
        assert values.before == values.after


def test_a_half_is_a_mean_of_samples_only_on_the_side_that_has_several() -> None:
    one = [scored(RIGHT, question=q) for q in "abcd"]
    two = [scored(t, question=q, sample=i) for q in "abcd" for i, t in enumerate((RIGHT, WRONG))]
    change = compare_replies(one, two)["strict"]
    assert (change.after.low, change.after.high) == (0.5, 0.5)  # a bootstrap of equal values
    assert change.before.low == pytest.approx(wilson_interval(4, 4)[0])
    # Samples that are all right, or all wrong, have an interval with a width.
    for text, total in (RIGHT, 4), (WRONG, 0):
        report = summarise([scored(text, question=q, sample=s) for q in "abcd" for s in (0, 1)])
        for name in ("strict", "pass@2", "majority_vote"):
            assert (report[name].low, report[name].high) == wilson_interval(total, 4), name
