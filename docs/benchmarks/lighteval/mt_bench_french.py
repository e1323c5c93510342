"""The first turns of MT-Bench-French as a task of LightEval, rated by a judge from 1 to 10.

LightEval's own mt_bench (0.13.0) asks for one turn and then looks for the score of two. The judge
is JUDGE, as litellm calls it: openai/NAME for any OpenAI-compatible server, whose address and key
are in OPENAI_BASE_URL and OPENAI_API_KEY. DATASET can be a folder with a copy of question.jsonl.
"""

import math
import os
import re

import numpy as np
from lighteval.metrics.metrics_sample import JudgeLLM
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

ASK = """Évalue la réponse d'un assistant à la question d'un utilisateur : utilité, pertinence,
exactitude, précision, et qualité du français. Une réponse dans une autre langue que le français est
mauvaise, sauf si la question le demande. Explique en quelques phrases, puis donne une note de 1 à
10 sous cette forme exacte : [[5]]

[Question]
{question}
{reference}
[Réponse de l'assistant]
{answer}"""


def ask(question, answer, gold=None, **_):
    """The judge's prompt; `gold` is a reference answer, where the question has one."""
    reference = f"\n[Réponse de référence]\n{gold}\n" if gold else ""
    said = ASK.format(question=question, answer=answer, reference=reference)
    return [{"role": "user", "content": said}]


def rating(verdict):
    """The rating in a verdict; not a number where there is none."""
    found = re.findall(r"\[\[(\d+(?:[.,]\d+)?)\]\]", verdict or "")
    return float(found[-1].replace(",", ".")) if found else math.nan


class FirstTurn(JudgeLLM):
    def compute(self, responses, docs, **_):
        """The ratings of all replies; says how many verdicts have none."""
        references = [doc.specific["reference"] for doc in docs]
        questions, answers = [d.query for d in docs], [r.final_text[0] for r in responses]
        none = [None] * len(docs)
        scores, _, _ = self.judge.evaluate_answer_batch(questions, answers, none, references)
        print(f"{sum(map(math.isnan, scores))} of {len(scores)} verdicts hold no rating")
        return scores


def question(line, task_name=None):
    references = line.get("reference") or [None]
    return Doc(
        task_name=task_name,
        query=line["turns"][0],
        choices=[""],
        gold_index=0,
        specific={"reference": references[0]},
    )


JUDGE = FirstTurn(
    judge_model_name=os.environ["JUDGE"],
    template=ask,
    process_judge_response=rating,
    judge_backend="litellm",
    backend_options={"caching": False},
)
TASKS_TABLE = [
    LightevalTaskConfig(
        name="mt-bench-french",
        prompt_function=question,
        hf_repo=os.environ.get("DATASET", "bofenghuang/mt-bench-french"),
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        generation_size=1024,
        stop_sequence=[],
        metrics=[
            SampleLevelMetric(
                metric_name="rating",
                higher_is_better=True,
                category=SamplingMethod.GENERATIVE,
                sample_level_fn=JUDGE,
                corpus_level_fn=np.nanmean,
                batched_compute=True,
            )
        ],
    )
]
