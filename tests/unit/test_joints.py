"""The joints: names of other libraries that no documentation promises and that we rely upon.

The table says which file of ours breaks when a new version drops or renames one. Nothing is
imported: the installed sources are read. On a GPU Unsloth writes its trainers from trl's source and
puts them in trl's place, so a joint in trl holds there too. A method that Unsloth rewrites is in
the table a second time.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.helpers import ROOT

# `our file: why`, then indented `their file: names`. A name is a function, class or variable of
# the file, `Class.attribute`, `Class.method(its, first, parameters)`, or a "text" of its source.
TABLE = """
posttrain/train/guard.py: a micro-batch is trained on in parts that fit the memory
    transformers/trainer.py: Trainer._prepare_inputs(inputs)
    transformers/trainer.py: Trainer.training_step(model, inputs, num_items_in_batch)
    trl/trainer/grpo_trainer.py: GRPOTrainer._prepare_inputs(generation_batch)
    trl/trainer/grpo_trainer.py: GRPOTrainer.training_step(model, inputs, num_items_in_batch)
    unsloth/models/rl_replacements.py: grpo_trainer__prepare_inputs
posttrain/train/guard.py: a failed attempt leaves no metrics
    trl/trainer/dpo_trainer.py: DPOTrainer._metrics
    trl/trainer/grpo_trainer.py: GRPOTrainer._metrics
posttrain/train/guard.py: tokens are counted once, and kept in a checkpoint, where trl does not
    transformers/trainer.py: Trainer._track_num_input_tokens(inputs)
    trl/trainer/dpo_trainer.py: DPOTrainer._total_train_tokens
posttrain/train/guard.py: trl's model card of a checkpoint is not written
    trl/trainer/dpo_trainer.py: "self.create_model_card(model_name=model_name)"
    trl/trainer/grpo_trainer.py: "self.create_model_card(model_name=model_name)"
posttrain/train/watch.py: a signal during a step: the checkpoint of the step before is written
    trl/trainer/dpo_trainer.py: DPOTrainer._save_checkpoint(model, trial)
    trl/trainer/grpo_trainer.py: GRPOTrainer._save_checkpoint(model, trial)
    transformers/trainer.py: Trainer.callback_handler Trainer.control
posttrain/train/trainers.py: whether and how a loss of DPO is a sum over pairs
    trl/trainer/dpo_trainer.py: DPOTrainer.loss_types DPOTrainer.loss_weights
    trl/trainer/dpo_trainer.py: DPOTrainer.use_weighting DPOTrainer.aux_loss_enabled
    trl/trainer/dpo_trainer.py: DPOTrainer.compute_loss(model, inputs, return_outputs)
posttrain/train/trainers.py: batches of like length, the same ones after a resume
    transformers/trainer.py: Trainer._get_train_sampler(train_dataset)
posttrain/train/grpo_trainer.py: whether and how a loss of GRPO is a sum over completions
    trl/trainer/grpo_trainer.py: GRPOTrainer.loss_type GRPOTrainer.aux_loss_enabled
    trl/trainer/grpo_trainer.py: GRPOTrainer.top_entropy_quantile
    trl/trainer/grpo_trainer.py: GRPOTrainer._entropy_bonus_enabled GRPOTrainer._step
    trl/trainer/grpo_trainer.py: GRPOTrainer._current_train_step_time
    trl/trainer/grpo_trainer.py: GRPOTrainer.compute_loss(model, inputs, return_outputs)
    trl/trainer/grpo_trainer.py: "self.current_gradient_accumulation_steps"
    transformers/trainer.py: Trainer.current_gradient_accumulation_steps
    unsloth/models/rl_replacements.py: "self.current_gradient_accumulation_steps"
posttrain/train/grpo_trainer.py: the order of an epoch follows from seed and epoch alone
    transformers/trainer.py: Trainer._get_train_sampler(train_dataset)
posttrain/train/grpo_trainer.py: whether a micro-batch without an advantage has a gradient
    trl/trainer/grpo_trainer.py: GRPOTrainer.beta
posttrain/train/grpo_trainer.py: the rows of a bad step are written with their rewards
    trl/trainer/grpo_trainer.py: GRPOTrainer._generate_and_score_completions(inputs)
    trl/trainer/grpo_trainer.py: GRPOTrainer._calculate_rewards GRPOTrainer.reward_func_names
    unsloth/models/rl_replacements.py: grpo_trainer__generate_and_score_completions
posttrain/train/grpo_trainer.py: generation that is out of memory is cut into fewer prompts
    trl/trainer/grpo_trainer.py: GRPOTrainer._generate_single_turn(prompt_ids) GRPOTrainer.use_vllm
    unsloth/models/rl_replacements.py: grpo_trainer__generate_single_turn
    trl/trainer/grpo_trainer.py: GRPOTrainer.use_transformers_continuous_batching
posttrain/train/grpo_trainer.py: log-probabilities of sampling and training are compared
    trl/trainer/grpo_trainer.py: GRPOTrainer.temperature GRPOTrainer._metrics
    trl/trainer/grpo_trainer.py: GRPOTrainer._current_train_step_time
    trl/trainer/grpo_trainer.py: "sampling/sampling_logp_difference/mean"
posttrain/train/grpo_trainer.py: scoring that is out of memory is cut into fewer rows
    trl/trainer/grpo_trainer.py: GRPOTrainer._get_per_token_logps_and_entropies(model, input_ids)
    unsloth/models/rl_replacements.py: "def _get_per_token_logps_and_entropies("
posttrain/train/micro_batches.py: the rows of a micro-batch, to cut it
    trl/trainer/dpo_trainer.py: "input_ids" "completion_mask"
    trl/trainer/grpo_trainer.py: "completion_ids" "completion_mask"
posttrain/train/trainers.py: the rows of a micro-batch, to write it as text
    trl/trainer/dpo_trainer.py: "input_ids" "attention_mask" "completion_mask"
posttrain/train/grpo_trainer.py: the rows of a micro-batch, to write it as text
    trl/trainer/grpo_trainer.py: "prompt_ids" "prompt_mask" "completion_ids" "completion_mask"
    trl/trainer/grpo_trainer.py: "advantages"
posttrain/train/trainers.py: batches of like length
    transformers/trainer_pt_utils.py: LengthGroupedSampler
    trl/trainer/dpo_trainer.py: "prompt_ids" "chosen_ids" "rejected_ids"
posttrain/train/reference_cache.py: the reference is scored once, by trl's own step, and kept
    trl/trainer/dpo_trainer.py: DPOTrainer.compute_ref_log_probs(model, inputs)
    trl/trainer/dpo_trainer.py: DPOTrainer.precompute_ref_logps
    trl/trainer/dpo_trainer.py: "ref_chosen_logps" "ref_rejected_logps"
    transformers/trainer.py: Trainer.data_collator
posttrain/train/loop.py: a checkpoint of the last step is loaded, to be scored
    transformers/trainer.py: Trainer._load_from_checkpoint(resume_from_checkpoint)
posttrain/train/validation.py: a checkpoint is loaded to be validated, or because it is the best
    transformers/trainer.py: Trainer._load_from_checkpoint(resume_from_checkpoint)
posttrain/train/validation.py: the last step of a run, as transformers counts it
    transformers/trainer.py: Trainer.set_initial_training_values(args, dataloader)
    transformers/trainer.py: Trainer.get_train_dataloader()
posttrain/train/arguments.py: a schedule is made before the model is loaded
    transformers/optimization.py: get_scheduler(name, optimizer)
posttrain/train/validation.py: validations are passed on to whoever follows the metrics
    transformers/trainer.py: Trainer.callback_handler Trainer.control
posttrain/train/watch.py: the norms of all weights in one call
    torch/_C/_VariableFunctions.pyi: _foreach_norm
posttrain/train/wandb_log.py: whether a key is there and valid, without a question
    wandb/sdk/lib/wbauth/__init__.py: authenticate_session
posttrain/settings/extra.py: the fields of a config class are read from its source
    trl/trainer/base_config.py: _BaseConfig
    transformers/training_args.py: TrainingArguments
posttrain/model/runtime.py: float32 stays float32 on a GPU
    unsloth/models/rl.py: "UNSLOTH_MIXED_PRECISION"
posttrain/model/runtime.py: generated trainers are written under outputs/, and nothing is counted
    unsloth_zoo/compiler.py: "UNSLOTH_COMPILE_LOCATION"
    unsloth/models/_utils.py: "UNSLOTH_DISABLE_STATISTICS"
posttrain/model/runtime.py: the 4-bit repository that is loaded in place of the one named
    unsloth/models/loader_utils.py: get_model_name(model_name, load_in_4bit)
posttrain/model/pretrained.py: a saved tokenizer says nothing of how it was read
    transformers/tokenization_utils_base.py: PreTrainedTokenizerBase.init_kwargs
posttrain/model/adapter.py: the copy that trl adds for the reference is removed or replaced
    trl/trainer/dpo_trainer.py: 'add_adapter("ref"' 'adapter_name="ref"'
    trl/trainer/grpo_trainer.py: 'add_adapter("ref"'
posttrain/model/merged.py: the layers that an adapter changes, their base weights, and DoRA's
    peft/tuners/lora/__init__.py: LoraLayer
    peft/tuners/lora/layer.py: LoraLayer.lora_variant LoraLayer.lora_bias
    peft/tuners/lora/layer.py: LoraLayer.lora_magnitude_vector LoraLayer.scaling
    peft/tuners/lora/variants.py: DoraLinearVariant
    peft/utils/integrations.py: dequantize_module_weight(module)
posttrain/model/runtime.py: keys and values are not copied for each query head on a CPU
    transformers/integrations/sdpa_attention.py: use_gqa_in_sdpa(attention_mask, key, value)
posttrain/model/policy.py: LoRA layers without anything that this formula leaves out
    peft/tuners/lora/__init__.py: LoraLayer
    peft/tuners/lora/layer.py: LoraLayer.lora_variant LoraLayer.lora_bias LoraLayer.lora_dropout
    peft/tuners/lora/layer.py: LoraLayer.scaling
posttrain/model/log_probs.py: the logits of scored tokens alone, some at a time
    trl/trainer/utils.py: add_fused_lm_head(model)
    trl/trainer/utils.py: FusedCausalLMOutput.log_probs
posttrain/model/prompts.py: layers that keep the keys and values of all tokens, and only these
    transformers/cache_utils.py: DynamicLayer
posttrain/model/rollouts.py: a trainer's generation goes through its model's generate()
    trl/trainer/grpo_trainer.py: "unwrapped_model.generate("
    unsloth/models/rl.py: "original_generate = generating_model.generate"
rewards/__init__.py: trl calls rewards with the keywords that the check uses
    trl/trainer/grpo_trainer.py: "completions=completions, completion_ids=completion_ids_list"
    trl/trainer/grpo_trainer.py: 'reward_kwargs["trainer_state"]' 'reward_kwargs["log_extra"]'
    trl/trainer/grpo_trainer.py: "prompts=prompts, completions" 'reward_kwargs["log_metric"]'
scripts/grpo.py: the prompts that trl renders get the variables that ours get, and our clock
    trl/trainer/grpo_trainer.py: GRPOTrainer.chat_template_kwargs "**self.chat_template_kwargs"
    transformers/utils/chat_template_utils.py: 'globals["strftime_now"]'
posttrain/model/checks.py: embedding and output layer are trained in full, not with LoRA
    unsloth/models/_utils.py: 'EMBEDDING_MODULES = frozenset(("embed_tokens", "lm_head"))'
    unsloth_zoo/cpu/loader.py: 'm in ("embed_tokens", "lm_head")'
posttrain/model/checks.py: the layers that peft puts LoRA on
    transformers/pytorch_utils.py: Conv1D
posttrain/model/trust.py: what transformers lets torch read from a checkpoint
    transformers/trainer_pt_utils.py: safe_globals
posttrain/export/merge.py: which layers an adapter changes
    peft/tuners/lora/__init__.py: LoraLayer
posttrain/export/weights.py: the layout of the tensors of a GGUF file
    transformers/modeling_gguf_pytorch_utils.py: TENSOR_PROCESSORS TensorProcessor
    transformers/modeling_gguf_pytorch_utils.py: LlamaTensorProcessor.process
posttrain/export/weights.py: which entry of a GGUF file's header is which number of a config
    transformers/integrations/ggml.py: GGUF_CONFIG_MAPPING
posttrain/export/weights.py: alpha_pattern as peft reads it
    peft/utils/other.py: get_pattern_key(pattern_keys, key_to_match)
"""


class Joint(NamedTuple):
    """Names in a file of theirs that a file of ours needs."""

    ours: str
    theirs: str
    names: list[str]
    why: str


def read_table(table: str) -> Iterator[Joint]:
    ours = why = ""
    for line in table.strip().splitlines():
        path, rest = line.strip().split(": ", 1)
        if line == line.lstrip():
            ours, why = path, rest
        else:
            names = re.findall(r"'[^']+'|\"[^\"]+\"|[\w.]+(?:\([^)]*\))?", rest)
            yield Joint(ours, path, names, why)


JOINTS = list(read_table(TABLE))
LIBRARIES = (
    *("accelerate", "bitsandbytes", "peft", "torch"),
    *("transformers", "trl", "unsloth", "wandb"),
)
# What their documentation describes: attributes of a Trainer, and modules to import from.
DOCUMENTED = {
    *("model", "args", "state", "accelerator", "train_dataset", "processing_class"),
    *("add_callback", "remove_callback", "train", "training_step", "compute_loss", "log"),
}
# Where our subclasses of the trainers are.
TRAINERS = tuple(f"posttrain/train/{name}.py" for name in ("guard", "trainers", "grpo_trainer"))
DOCUMENTED_MODULES = ("torch.", "accelerate.", "transformers.utils")


@cache
def source_of(theirs: str) -> str:
    """The installed source of a file such as trl/trainer/dpo_trainer.py."""
    package, _, rest = theirs.partition("/")
    spec = importlib.util.find_spec(package)
    assert spec and spec.origin, f"{package} is not installed"
    path = Path(spec.origin).parent / rest
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def has(source: str, name: str) -> bool:
    """Whether a source has a name, or a quoted text."""
    if name[0] in "'\"":
        return name[1:-1] in source
    name, _, parameters = name.partition("(")
    *owner, last = name.split(".")
    scopes: list[ast.AST] = [parsed(source)]
    if owner:
        classes = [node for node in ast.walk(scopes[0]) if isinstance(node, ast.ClassDef)]
        scopes = [node for node in classes if node.name == owner[0]][:1]
    wanted = [part.strip() for part in parameters.rstrip(")").split(",") if part]
    names = (each for scope in scopes for each in defined(scope))
    return any(wanted == given[: len(wanted)] for n, given in names if n == last)


def defined(scope: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Names that a module or class defines, its `self.name = ...` too, with a def's parameters."""
    for node in ast.walk(scope):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, [each.arg for each in node.args.args if each.arg != "self"]
        elif isinstance(node, ast.ClassDef | ast.alias):
            yield node.name, []
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield (node.id if isinstance(node, ast.Name) else node.attr), []


def test_the_installed_versions_have_what_we_rely_upon() -> None:
    missing = [
        f"{joint.theirs} has no {name} any more; {joint.ours} needs it: {joint.why}"
        for joint in JOINTS
        for name in joint.names
        if not has(source_of(joint.theirs), name)
    ]
    assert not missing, "\n".join(missing)


def test_our_files_still_need_it() -> None:
    unused = [
        f"{joint.ours} does not need {name} of {joint.theirs}"
        for joint in JOINTS
        for name in joint.names
        if name[0] not in "'\""
        and "__" not in name
        and name.partition("(")[0].split(".")[-1] not in (ROOT / joint.ours).read_text("utf-8")
    ]
    assert not unused, "\n".join(unused)


def ours() -> list[Path]:
    folders = ("posttrain", "scripts", "eval", "rewards")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def known(path: str) -> set[str]:
    """What the table allows in a file of ours: the last parts of names, texts, and modules."""
    joints = [joint for joint in JOINTS if joint.ours == path]
    names = (name.strip("'\"").partition("(")[0] for joint in joints for name in joint.names)
    modules = {Path(joint.theirs).parent.name for joint in joints}
    return {name.split(".")[-1] for name in names} | modules


@cache
def own_names(*patterns: str) -> set[str]:
    """Every attribute, method and field that our own code defines, or some files of it."""
    paths = [path for path in ours() if any(map(path.match, patterns or ("*.py",)))]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    return {name for tree in trees for name, _ in defined(tree)}


@cache
def their_private_names() -> set[str]:
    """Private names of the trainers, and of what Unsloth writes into those that it generates."""
    files = {joint.theirs for joint in JOINTS if re.search("trainer.py|/rl", joint.theirs)}
    pattern = re.compile(r"(?:self\.|def )(_[a-z]\w*)")
    return {name for file in files for name in pattern.findall(source_of(file))}


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each use of a library that has to be in the table."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            on = ast.unparse(node.value).split(".")[-1]
            private = re.match("_[^_]", node.attr) and node.attr not in own_names()
            undocumented = on == "trainer" and node.attr not in own_names(*TRAINERS)
            if (private or undocumented) and ast.unparse(node) != "os._exit":
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(LIBRARIES):
            module = node.module or ""
            if "." in module and not module.startswith(DOCUMENTED_MODULES):
                yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch("UNSLOTH_[A-Z_]+", str(node.value)):
            yield node.lineno, str(node.value)
        elif isinstance(node, ast.ClassDef) and "(trainer_class)" in ast.unparse(node):
            yield from trainer_uses(node)


def trainer_uses(trainer: ast.ClassDef) -> Iterator[tuple[int, str]]:
    """What a subclass of a trainer takes over from it or uses of it."""
    for node in ast.walk(trainer):
        if isinstance(node, ast.FunctionDef) and node.name in their_private_names():
            yield node.lineno, node.name
        elif (
            isinstance(node, ast.Attribute)
            and ast.unparse(node.value) in ("self", "super()")
            and (node.attr not in own_names(*TRAINERS) or node.attr in their_private_names())
        ):
            yield node.lineno, node.attr


def test_nothing_is_relied_upon_beyond_the_table() -> None:
    missing = []
    for path in ours():
        name = str(path.relative_to(ROOT))
        allowed = known(name) | DOCUMENTED
        result = sorted(uses(ast.parse(path.read_text(encoding="utf-8"))))
        missing += [f"{name}:{line}: {each}" for line, each in result if each not in allowed]
    assert not missing, "not in the table of joints: " + "; ".join(missing)


def test_a_joint_that_is_not_in_the_table_is_found() -> None:
    for code in (
        "trainer._buffered_inputs",
        "trainer.ref_model",
        "from peft.utils.save_and_load import get_peft_model_state_dict",
        "import os; os.environ['UNSLOTH_RETURN_LOGITS'] = '1'",
        "class Guarded(trainer_class):\n def _inner_training_loop(self): ...",
        "class Guarded(guarded(trainer_class)):\n def f(self): return self.epsilon_high",
    ):
        assert list(uses(ast.parse(code))), code


def test_a_name_that_is_gone_is_missed() -> None:
    code = "LIMIT = 3\nclass A:\n def __init__(self, x):\n  self._y = x\n def f(self, a, b): ..."
    there = ["LIMIT", "A", "A._y", "A.f", "A.f(a)", "A.f(a, b)", '"LIMIT = 3"']
    gone = ["LIMITS", "B._y", "A._z", "A.f(b)", "A.f(a, b, c)", '"LIMIT = 4"']
    assert [name for name in (*there, *gone) if has(code, name)] == there
