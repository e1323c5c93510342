"""How a trained model is loaded elsewhere, as the model card shows it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from eval import conversation
from posttrain.run.record import Settings
from posttrain.run.results import Exported
from posttrain.settings import Prompt

GRADE_SCHOOL = "Tom has 3 boxes of 12 pens and gives 7 pens away. How many pens are left?"
QUESTIONS = {
    "SFT": GRADE_SCHOOL,
    "DPO": "Explique en deux phrases pourquoi le ciel est bleu.",
    "GRPO": GRADE_SCHOOL,
}
TRANSFORMERS = """\
from {package} import {loader}
from transformers import AutoTokenizer

model = {loader}.from_pretrained("{folder}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
turns = {turns}
prompt = tokenizer.apply_chat_template(
    turns, add_generation_prompt=True, return_tensors="pt", return_dict=True{variables}
)
reply = model.generate(**prompt, max_new_tokens={limit}, do_sample=False)
print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))"""


@dataclass(frozen=True)
class Snippet:
    title: str
    language: str
    code: str
    tested: bool
    """The project's tests run this very text."""


def snippets(
    settings: Settings, exports: Mapping[str, Exported], repository: str | None
) -> list[Snippet]:
    """One for the adapter, and one for every way of loading each export there is."""
    question = QUESTIONS[settings["method"].upper()]
    system, limit = settings["prompt"]["system"], settings["evaluation"]["max_new_tokens"]
    turns = conversation(question, Prompt.model_validate(settings["prompt"]))
    shown = (
        "[\n" + "".join(f"    {json.dumps(turn, ensure_ascii=False)},\n" for turn in turns) + "]"
    )
    system_option = f"-sys {shlex.quote(system)} " if system else ""
    variables = settings["prompt"].get("chat_template_kwargs") or {}  # none in earlier runs
    named = "".join(f", {name}={value!r}" for name, value in variables.items())
    option = f"chat-template-kwargs {shlex.quote(json.dumps(variables))} " if variables else ""

    def transformers(package: str, loader: str, folder: str) -> str:
        return TRANSFORMERS.format(
            package=package,
            loader=loader,
            folder=folder,
            turns=shown,
            variables=named,
            limit=limit,
        )

    listed = [
        Snippet(
            "transformers and peft",
            "python",
            transformers("peft", "AutoPeftModelForCausalLM", repository or "adapter"),
            tested=True,
        )
    ]
    for name, export in exports.items():
        path = export.path
        if name == "merged_16bit":
            merged = transformers("transformers", "AutoModelForCausalLM", repository or path)
            listed.append(Snippet("transformers, merged weights", "python", merged, tested=True))
            default = option and f"--default-{option}"
            serve = f"vllm serve {default}{shlex.quote(repository or path)}"
            listed.append(Snippet("vLLM", "bash", serve, tested=False))
        elif name.startswith("gguf:"):
            model = f"llama-cli -m {shlex.quote(path)} --temp 0 {option and f'--{option}'}"
            command = f"{model}{system_option}-p {shlex.quote(question)}"
            if len(turns) > 2:  # llama-cli takes no earlier turns
                command = f"# without the worked examples of training\n{command}"
            listed.append(Snippet(f"llama.cpp, {name[5:]}", "bash", command, tested=False))
        elif name == "ollama":
            model = settings["run"]["name"].lower()
            command = f"ollama create {model} -f {shlex.quote(path)}\nollama run {model}"
            listed.append(Snippet("Ollama", "bash", command, tested=False))
    return listed
