"""The model card: a run folder's README.md, for those who use the model."""

import re
from pathlib import Path
from typing import Any

from eval import figures
from eval.measures import kind
from posttrain.base.errors import ConfigError
from posttrain.base.files import write_text
from posttrain.base.paths import ROOT
from posttrain.base.progress import duration
from posttrain.report import export_scores, stages, tables
from posttrain.report.export_words import in_words
from posttrain.report.rows import as_markdown
from posttrain.report.snippets import snippets
from posttrain.run.reading import read_run
from posttrain.run.record import Run, Settings
from posttrain.run.results import Check
from posttrain.settings.strict_yaml import dump_yaml

# Licences of what the configs name, as their pages on the hub state them.
LICENCES = {
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
METHODS = {
    "SFT": {
        "name": "SFT",
        "scored": "replies and problems",
        "url": "https://arxiv.org/abs/2203.02155",
        "text": (
            "Supervised fine-tuning, loss {losses}: the cross-entropy of the tokens of replies, "
            "with no loss on their prompts."
        ),
    },
    "DPO": {
        "name": "DPO",
        "scored": "pairs and prompts",
        "url": "https://arxiv.org/abs/2305.18290",
        "text": (
            "Direct Preference Optimization ([Rafailov et al. 2023]"
            "(https://arxiv.org/abs/2305.18290)), loss {losses}, beta {beta:g}: the policy "
            "learns to raise `log pi(chosen)/ref(chosen) - log pi(rejected)/ref(rejected)`, where "
            "the reference is {reference}."
        ),
    },
    "GRPO": {
        "name": "GRPO",
        "scored": "problems",
        "url": "https://arxiv.org/abs/2402.03300",
        "text": (
            "Group Relative Policy Optimization ([Shao et al. 2024]"
            "(https://arxiv.org/abs/2402.03300)), loss {losses}, {group} completions a prompt, "
            "beta {beta:g}. The advantage of a completion is its reward minus the mean of its "
            "group, divided by the {scale}. Rewards: {rewards}."
        ),
    },
}

# What the scores of a method do not show.
UNSEEN = {
    "REWARDS": (
        "Scored by the rewards that it was trained on: what they do not measure is neither taught "
        "nor scored."
    ),
    "SFT": (
        "It imitates the replies of its training data; on what they do not show, it is the base "
        "model."
    ),
    "GRPO": (
        "Rewards see the final number, not the reasoning: steps can be wrong where the answer is "
        "right."
    ),
    "DPO": (
        "Preferences were taken as they are in the data; whatever separates chosen from rejected "
        "replies there, length included, was taught."
    ),
}
VERSIONS = ("unsloth", "trl", "transformers", "torch")


def write_model_card(run: Path, repository: str | None = None) -> Path:
    """Write README.md into a run folder.

    Args:
        run: A run folder with at least config.yaml and environment.json.
        repository: Name on the hub that the snippets load from; the folder's files without it.

    Raises:
        ConfigError: the folder is not a run's.
    """
    path = run / "README.md"
    write_text(path, render_model_card(run, repository))
    return path


def render_model_card(path: Path, repository: str | None = None) -> str:
    """The text of the card; see `write_model_card`."""
    import jinja2

    run = read_run(path)
    if not (run.method in METHODS and run.environment.versions):
        raise ConfigError(f"{path}: not a run folder (config.yaml or environment.json is missing)")
    template = Path(__file__).with_name("model_card.md.j2").read_text(encoding="utf-8")
    rendering = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    settings, method, versions = run.config, METHODS[run.method], run.environment.versions
    name = repository or settings["run"]["name"]
    return rendering.from_string(template).render(
        run=run,
        front_matter=_front_matter(settings, method["name"], name),
        title=name,
        verdict=_verdict(run),
        base=_source(settings["model"]["name"]),
        base_in_project=_is_in_project(settings["model"]["name"]),
        data=_source(settings["data"]["train"]["path"]),
        method=method,
        method_text=_method_text(method["text"], settings),
        settings=settings,
        duration=duration(run.seconds),  # of all its sessions
        kept=_kept(run),
        versions=", ".join(f"{k} {versions[k]}" for k in VERSIONS if k in versions),
        stages=stages.lines(run),
        examples=settings["prompt"].get("examples"),  # none in earlier runs
        variables=settings["prompt"].get("chat_template_kwargs"),  # none in earlier runs
        table=as_markdown(tables.compared(run.changes())),
        exports=[
            (name, export, "; ".join(map(_check, export.checks)))
            for name, export in run.exports.items()
        ],
        files=as_markdown(export_scores.rows(run)),
        files_title=export_scores.TITLE,
        file_remarks=[
            s for s in (export_scores.no_file_lost(run), *export_scores.remarks(run)) if s
        ],
        snippets=snippets(settings, run.exports, repository),
        limitations=_limitations(run),
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
    known = _licence(name)
    local = Path(name).is_absolute() or name.startswith((".", "~"))
    return {"name": f"`{Path(name).name if local else name}`", "licence": known or UNKNOWN}


def _front_matter(settings: Settings, method: str, name: str) -> str:
    """The card's metadata block, which the hub reads."""
    from huggingface_hub import ModelCardData

    base, data = settings["model"]["name"], settings["data"]["train"]["path"]
    on_hub = re.compile(r"(?!assets/)[\w.-]+/[\w.-]+")
    licence = _licence(base)
    own = licence == "qwen-research"  # the hub lists it under no name of its own
    card = ModelCardData(
        base_model=base if on_hub.fullmatch(base) else None,
        datasets=[data] if on_hub.fullmatch(data) else None,
        language=[settings["data"].get("language") or "fr"] if method == "DPO" else ["en"],
        library_name="peft",
        license="other" if own else licence,
        license_name=licence if own else None,
        model_name=name,
        pipeline_tag="text-generation",
        tags=["trl", "unsloth", "lora", method.lower()],
    )
    return f"---\n{card.to_yaml()}\n---"


def _method_text(text: str, settings: Settings) -> str:
    training = settings["training"]
    losses = training["loss_type"]
    scale = "group's standard deviation"
    if training.get("scale_rewards") == "batch":
        scale = "standard deviation of the batch"
    elif training.get("scale_rewards") == "none":
        scale = "number 1 (not scaled)"
    return text.format(
        reference="the adapter that it started from, on the base model"
        if settings["model"].get("adapter")
        else "the base model",
        losses=losses if isinstance(losses, str) else " + ".join(losses),
        beta=training.get("beta", 0.0),
        group=training.get("num_generations"),
        scale=scale,
        rewards=", ".join(f"{k} (weight {v:g})" for k, v in settings.get("rewards", {}).items()),
    )


def _verdict(run: Run) -> str:
    """One sentence: what was trained on what, and how the headline measure changed."""
    settings = run.config
    base, data = _source(settings["model"]["name"]), _source(settings["data"]["train"]["path"])
    done = f"A LoRA adapter for {base['name']}, trained with {run.method} on {data['name']}."
    name = run.headline
    if name is None:
        return done
    change = run.changes()[name]
    before, after = (figures.value(name, side) for side in (change.before, change.after))
    went = f"{figures.label(name)} went from {before} to {after}"
    return f"{done} On {_held_out(run, name)}, {went}."


def _held_out(run: Run, name: str) -> str:
    return f"{run.changes()[name].n} held-out {kind(name).of}"


def _is_in_project(name: str) -> bool:
    return not Path(name).is_absolute() and (ROOT / name).is_dir()


def _check(check: Check) -> str:
    name, value, limit = in_words(vars(check))
    limit = f" ({limit})" if limit else ""
    return f"{name}: {value}{limit}{'' if check.passed else ', **failed**'}"


def _kept(run: Run) -> str:
    """Which step's adapter this is, where validation chose it; else empty."""
    kept = run.kept
    if kept is None:
        return ""
    rows = run.section("data").get("validation")
    return (
        f"of step {kept.step}, by {kept.validations} validations on {rows} rows of the training "
        f"data that were not trained on ({figures.label(kept.by)} "
        f"{figures.plain(kept.by, kept.value)}); the test set had no part in the choice"
    )


def _limitations(run: Run) -> list[str]:
    """What the results do not show."""
    lines = [
        "Scored only on what the table names. Nothing is known about safety, factual knowledge or "
        "other languages and tasks; the model can be confidently wrong."
    ]
    if run.headline is not None:
        lines.append(
            f"{_held_out(run, run.headline)} of the training data's own kind: an interval covers "
            "other questions of this kind, not other kinds. One seed was trained."
        )
    lines.append(UNSEEN["REWARDS" if run.text_answers else run.method])
    if run.config["model"]["load_in_4bit"]:
        lines.append(
            "Trained on 4-bit base weights. An export applies the adapter to the 16-bit weights, "
            "which differ from them a little; its parity is in the table of exports."
        )
    return lines
