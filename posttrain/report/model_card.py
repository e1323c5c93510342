"""The model card: a run folder's README.md, for those who use the model."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import conversation, figures
from eval.measures import kind
from posttrain.base.errors import ConfigError
from posttrain.base.paths import ROOT
from posttrain.base.progress import duration
from posttrain.report import export_scores, page_data, tables
from posttrain.report.export_words import check_cells
from posttrain.run.record import Run, Settings, read_run
from posttrain.run.results import Check, Exported
from posttrain.settings import Prompt
from posttrain.settings.strict_yaml import dump_yaml

# Licences of what the configs name, as their pages on the hub state them.
LICENCES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "apache-2.0",
    "AIffl/french_orca_dpo_pairs": "apache-2.0",
    "Qwen/Qwen2.5-0.5B-Instruct": "apache-2.0",
    "Qwen/Qwen2.5-1.5B-Instruct": "apache-2.0",
    "Qwen/Qwen2.5-3B-Instruct": "qwen-research",
    "Qwen/Qwen3-0.6B": "apache-2.0",
    "assets/demo_data": "apache-2.0",
    "assets/demo_model": "apache-2.0",
    "jpacifico/french-orca-dpo-pairs-revised": "apache-2.0",
    "openai/gsm8k": "mit",
}
UNKNOWN = "licence not known here; see its source"
VERSIONS = ("unsloth", "trl", "transformers", "torch")
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


def render_model_card(
    path: Path, repository: str | None = None, uploaded: Sequence[str] = ()
) -> str:
    """The text of a run folder's card, whose snippets load from `repository`, a name on the hub, or
    without it from the folder's files. Raises ConfigError if the folder is not a run's."""
    import jinja2

    run = read_run(path)
    if not (run.method and run.environment.versions):
        raise ConfigError(f"{path}: not a run folder (config.yaml or environment.json is missing)")
    template = Path(__file__).with_name("model_card.md.j2").read_text(encoding="utf-8")
    rendering = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    rendering.filters["check"] = _check
    settings, versions = run.config, run.environment.versions
    base, data = settings["model"]["name"], settings["data"]["train"]["path"]
    title = repository or settings["run"]["name"]
    return rendering.from_string(template).render(
        run=run,
        front_matter=_front_matter(run, base, data, title),
        title=title,
        base=_source(base),
        base_in_project=not Path(base).is_absolute() and (ROOT / base).is_dir(),
        data=_source(data),
        settings=settings,
        figures=figures,
        kind=kind,
        duration=duration(run.seconds),  # of all its sessions
        versions=", ".join(f"{k} {versions[k]}" for k in VERSIONS if k in versions),
        stages=page_data.stages(run),
        table=tables.as_markdown(tables.compared(run.changes())),
        export_scores=export_scores,
        files=tables.as_markdown(export_scores.rows(run)),
        snippets=snippets(settings, run.exports, repository, uploaded),
        yaml=dump_yaml(_without_folders(settings)),
    )


def _without_folders(value: Any) -> Any:
    """Settings with absolute paths cut to their last part: the card is public, the machine not."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _licence(name: str) -> str | None:
    """Licence of a hub name or file that the configs name, None if it is not one of them."""
    return next((v for k, v in LICENCES.items() if name == k or name.startswith(f"{k}/")), None)


def _source(name: str) -> dict[str, str]:
    """Where something came from: its hub name, or the last part of a path of some machine."""
    local = Path(name).is_absolute() or name.startswith((".", "~"))
    shown = Path(name).name if local else name
    return {"name": f"`{shown}`", "licence": _licence(name) or UNKNOWN}


def _front_matter(run: Run, base: str, data: str, title: str) -> str:
    """The card's metadata block, which the hub reads."""
    from huggingface_hub import ModelCardData

    on_hub = re.compile(r"(?!assets/)[\w.-]+/[\w.-]+")
    licence = _licence(base)
    unlisted = licence == "qwen-research"  # the hub has no name for it
    language = (run.section("data").get("language") or "fr") if run.method == "DPO" else "en"
    card = ModelCardData(
        base_model=base if on_hub.fullmatch(base) else None,
        datasets=[data] if on_hub.fullmatch(data) else None,
        language=[language],
        library_name="peft",
        license="other" if unlisted else licence,
        license_name=licence if unlisted else None,
        model_name=title,
        pipeline_tag="text-generation",
        tags=["trl", "unsloth", "lora", run.method.lower()],
    )
    return f"---\n{card.to_yaml()}\n---"


def _check(check: Check) -> str:
    name, value, limit = check_cells(check)
    limit = f" ({limit})" if limit else ""
    return f"{name}: {value}{limit}{'' if check.passed else ', **failed**'}"


@dataclass(frozen=True)
class Snippet:
    title: str
    language: str
    code: str
    tested: bool = False
    """The project's tests run this very text."""


def snippets(
    settings: Settings,
    exports: Mapping[str, Exported],
    repository: str | None,
    uploaded: Sequence[str] = (),
) -> list[Snippet]:
    """How the model is loaded: one for the adapter, one for every way of loading each export. In a
    repository, what was uploaded alone: those exports or, without any, the adapter."""
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

    listed = []
    if not uploaded:
        listed = [transformers("transformers and peft", "AutoPeftModelForCausalLM", "adapter")]
    for name, export in exports.items():
        if repository and name not in uploaded:
            continue
        path = shlex.quote(Path(export.path).name if repository else export.path)
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
