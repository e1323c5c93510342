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
FRENCH = "Explique en deux phrases pourquoi le ciel est bleu."
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
    tested: bool = False
    """The project's tests run this very text."""


def snippets(
    settings: Settings, exports: Mapping[str, Exported], repository: str | None
) -> list[Snippet]:
    """One for the adapter, and one for every way of loading each export there is."""
    question = FRENCH if settings["method"] == "dpo" else GRADE_SCHOOL
    system, limit = settings["prompt"]["system"], settings["evaluation"]["max_new_tokens"]
    turns = conversation(question, Prompt.model_validate(settings["prompt"]))
    lines = "".join(f"    {json.dumps(turn, ensure_ascii=False)},\n" for turn in turns)
    variables = settings["prompt"].get("chat_template_kwargs") or {}  # none in earlier runs
    named = "".join(f", {name}={value!r}" for name, value in variables.items())
    option = f"chat-template-kwargs {shlex.quote(json.dumps(variables))} " if variables else ""

    def transformers(title: str, loader: str, folder: str) -> Snippet:
        package = "peft" if "Peft" in loader else "transformers"
        code = TRANSFORMERS.format(
            package=package,
            loader=loader,
            folder=repository or folder,
            turns=f"[\n{lines}]",
            variables=named,
            limit=limit,
        )
        return Snippet(title, "python", code, tested=True)

    listed = [transformers("transformers and peft", "AutoPeftModelForCausalLM", "adapter")]
    for name, export in exports.items():
        path = shlex.quote(export.path)
        if name == "merged_16bit":
            title = "transformers, merged weights"
            listed.append(transformers(title, "AutoModelForCausalLM", export.path))
            code = f"vllm serve {option and f'--default-{option}'}"
            listed.append(Snippet("vLLM", "bash", code + shlex.quote(repository or export.path)))
        elif name.startswith("gguf:"):
            code = f"llama-cli -m {path} --temp 0 {option and f'--{option}'}"
            code += f"-sys {shlex.quote(system)} " if system else ""
            code += f"-p {shlex.quote(question)}"
            if len(turns) > 2:  # llama-cli takes no earlier turns
                code = f"# without the worked examples of training\n{code}"
            listed.append(Snippet(f"llama.cpp, {name[5:]}", "bash", code))
        elif name == "ollama":
            model = settings["run"]["name"].lower()
            code = f"ollama create {model} -f {path}\nollama run {model}"
            listed.append(Snippet("Ollama", "bash", code))
    return listed
