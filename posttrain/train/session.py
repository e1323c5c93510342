"""What a training run does around its training, in one place for all three scripts.

    Session()   read the command line; look for an earlier run in the folder
    start       start Unsloth, check the device
    open        the run folder, described, and W&B
    load        the policy
    kept_scores the scores of an interrupted run, which are not repeated
    train       from the start or from the checkpoint, up to the adapter on the disk
    finish      comparison, report, export; if run.score is false, end_unscored

Report and export are commands that read the run folder, each in a separate process; nothing here
imports them. Between these steps a script has its data, rewards, trainer and scores.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from eval.measures import Change
from posttrain.base.disk import check_disk
from posttrain.base.errors import ConfigError, HealthError
from posttrain.base.files import fingerprint
from posttrain.base.paths import run_command, shown
from posttrain.base.process import run_script
from posttrain.data.prompted import cost_of_examples
from posttrain.data.render import clock_note, set_template_variables
from posttrain.model import checks, policy, pretrained, runtime, trust, vllm
from posttrain.model.device import check_device, free_memory
from posttrain.run.checkpoint import changes_since, check_same_run, only_length
from posttrain.run.environment import Clock
from posttrain.run.folder import RunFolder
from posttrain.run.reading import chain_of
from posttrain.run.room import disk_bytes, in_order
from posttrain.settings import DPOSettings, Export, GRPOSettings, SFTSettings, Training
from posttrain.settings.adapters import find_adapter
from posttrain.settings.command import Command, parse_command_line
from posttrain.train import loop
from posttrain.train.validation import Measures, Validation
from posttrain.train.wandb_log import WandbLog

# A LoRA weight in fp32, its two AdamW moments, and room for the tokenizer and the rest.
BYTES_A_WEIGHT = 16
S = TypeVar("S", SFTSettings, DPOSettings, GRPOSettings)
T = TypeVar("T")
# Where transformers' integrations keep their files, unless the user's environment names a folder.
TRACKER_FOLDERS = {"tensorboard": "TENSORBOARD_LOGGING_DIR", "trackio": "TRACKIO_DIR"}


class Session(Generic[S]):
    """One run of a training script.

    Raises:
        ConfigError: the command line, the config or the run folder is not fit for a run.
        CheckpointError: every checkpoint of the run folder is damaged.
    """

    def __init__(self, settings_class: type[S], story: str | None, argv: list[str] | None) -> None:
        """`story` is shown by --help."""
        command: Command[S] = parse_command_line(settings_class, story, argv)
        self.settings: S = command.settings
        self.dry_run: bool = command.dry_run
        self.config: str = str(command.config)
        self._command: Command[S] = command
        self.run: RunFolder = RunFolder(command.output)
        self.done: bool = not command.dry_run and self._is_done()
        """The folder holds this very run, finished."""
        if not self.done and (not command.dry_run or command.output.exists()):
            self.run.lock()  # also to look for its checkpoints, which sets damaged ones aside
        self._checkpoint = None if self.done else self.run.checkpoint(command.resume)
        self._facts: dict[str, Any] = {}
        for name, variable in TRACKER_FOLDERS.items():  # before the integrations are imported
            if name in self.settings.tracking.report_to:
                os.environ.setdefault(variable, str(self.run.path / name))

    def _is_done(self) -> bool:
        resume, anyway = self._command.resume, self._command.resume_anyway
        return self.run.is_done(self.settings, resume, anyway=anyway)

    def show_result(self) -> int:
        """Report a run that is done and export what it lacks; returns the exit code."""
        path, finished = self.run.path, self.run.finished
        again = ' "--resume never" trains it from the start (the old folder is moved aside).'
        state = f"a finished run; nothing to do.{again}" if finished else "trained; nothing to do."
        print(f"{path} is {state}\n")
        report(path)
        return after_training(path, self.settings.export) if finished else 0

    def end_dry_run(self, rows: Sequence[Any]) -> int:
        """Print how to train, or why an earlier run in the folder prevents it; returns the exit
        code. `rows` as for open."""
        refused = ""
        try:
            self._is_done()  # refuses a finished run of other settings
            if self._checkpoint:
                self._check_checkpoint(rows)
        except ConfigError as error:
            refused = f"\nAs it is, that command will be refused: {error}"
        print(f"{self._command.verdict()}{refused}")
        return 0

    def start(self) -> Any:
        """Start Unsloth and check that the device can run this config; returns the tokenizer.

        Raises:
            ConfigError: it cannot, or the tokenizer is not in reach, or the model does not fit it.
        """
        settings = self.settings
        checks.refuse_adapter(settings.model.name)
        pretrained.local_or_hub(settings.model.name)  # refused before anything heavy is loaded
        if settings.model.adapter:
            chain = chain_of(find_adapter(settings.model.adapter))
            self._facts["stages"] = [stage.as_json() for stage in chain]
        vllm.check_vllm(settings.model)
        threads = settings.run.threads
        if threads is None and self._checkpoint:
            threads = self.run.threads()
        device = runtime.start(settings.run.verbose, threads)
        print(check_device(device, settings.model, settings.training))
        self._facts |= {"device": device.name, "threads": device.threads}
        tokenizer = pretrained.load_tokenizer(settings.model)
        set_template_variables(tokenizer, settings.prompt.chat_template_kwargs)
        if settings.prompt.examples:
            print(cost_of_examples(tokenizer, settings.prompt))
        checks.check_model(settings, tokenizer)
        if note := clock_note(tokenizer):
            print(note)
        return tokenizer

    def open(self, rows: Sequence[Any]) -> None:
        """Open the run folder and start W&B; `rows` are all that is trained and scored on.

        Raises:
            CheckpointError: the checkpoint is of other settings, data, weights or versions.
        """
        self._check_checkpoint(rows)
        self.run.open(fresh=self._command.resume == "never")
        self.run.describe(self.settings, self._facts)
        self._wandb = WandbLog(self.run, self.settings)
        self._wandb.start(self._facts)

    def _check_checkpoint(self, rows: Sequence[Any]) -> None:
        """Identify this run, and check that the checkpoint is of the same one."""
        self._facts["weights"] = policy.base_weights(self.settings.model)
        self._facts["data"] = fingerprint(rows)
        self._identity: dict[str, Any] = self.run.identity(self.settings, self._facts)
        if self._checkpoint:
            trust.check_checkpoint(self._checkpoint)
            if not self._command.resume_anyway:
                check_same_run(self._checkpoint, self._identity)
            self._changed = changes_since(self._checkpoint, self._identity)

    def load(self) -> tuple[Any, Any]:
        """The policy and its tokenizer.

        Raises:
            ConfigError: the model cannot be loaded, or the disk is too full for what will be saved.
        """
        settings = self.settings
        start = f" with {settings.model.adapter}" if settings.model.adapter else ""
        print(f"Loading {settings.model.name}{start}")
        parts = settings.model, settings.lora, settings.training
        self._policy = policy.load(*parts, settings.run.verbose, settings.beyond_limit)
        set_template_variables(self._policy[1], settings.prompt.chat_template_kwargs)
        # Packed 4-bit weights are counted too.
        trained, weights = self._policy[0].get_nb_trainable_parameters()
        exports = disk_bytes(weights - trained, in_order(settings.export.to))
        keep = settings.training.save_total_limit
        check_disk(self.run.path, trained * BYTES_A_WEIGHT, keep, int(exports))
        return self._policy

    def kept_scores(self, read: Callable[[], T | None]) -> T | None:
        """What `read` returns of the scores that an interrupted run took before its first step.

        There are none from the start, or on resuming with other settings than the length.
        """
        if self._checkpoint is None:
            return None
        scores = read() if only_length(self._changed) else None
        kept = None if not self.settings.run.score else scores is not None
        training = self.settings.training
        print(resume_note(self._checkpoint, training, self.run, kept))
        if self._changed and training.lr_scheduler_type != "constant":
            print(
                f"The learning rate follows the {training.lr_scheduler_type} schedule of the new "
                "settings from here on, which may be far from where it ended"
            )
        return scores

    def train(
        self,
        trainer: Any,
        changed: dict[str, Any],
        shown: dict[str, str],
        validator: tuple[Callable[[], Measures], str] | None,
    ) -> int | None:
        """Train and save the adapter, the best by validation if there is any.

        Returns None, or the exit code of a run that ended early. `changed` are the arguments that a
        library changed, `shown` the metrics to watch, as loop.train takes them. `validator` scores
        the policy and names the measure that decides; None where there are no rows to validate on.

        Raises:
            CheckpointError: the best checkpoint is damaged.
        """
        trainer.add_callback(self._wandb)
        validation = Validation(self.run, self.settings, *validator) if validator else None
        if validation is not None:
            shown = {**shown, f"validation/{validation.by}": "validation"}
        clock = Clock()
        try:
            result = loop.train(
                *(trainer, self.settings, self.run, shown),
                *(self._checkpoint, self._identity, validation),
            )
        except HealthError as error:
            done = {"steps": trainer.state.global_step, "seconds": clock.seconds()}
            stopped = {"exit_code": error.exit_code, "reason": str(error).split("\n")[0]}
            self.run.amend({"trained": {**done, **stopped}})
            report(self.run.path)
            raise
        self._facts |= {"changed_arguments": changed, "trained": result}
        if "exit_code" not in result:
            if validation is not None and result["steps"]:
                self._facts["kept"] = validation.keep_best(trainer, result["steps"])
            policy.save_adapter(*self._policy, self.run.adapter)
            return None
        self.run.amend(self._facts)
        print(
            f"Stopped at step {result['steps']} ({result['reason']}). Everything is in "
            f"{self.run.path}; the same command resumes from there"
        )
        report(self.run.path)
        self._wandb.close(result["exit_code"])
        return int(result["exit_code"])

    def end_unscored(self) -> int:
        """End a run that is not to be scored (run.score); returns the exit code."""
        self.run.describe(self.settings, self._facts)
        report(self.run.path)
        self._wandb.close(0)
        return 0

    def finish(self, comparison: Mapping[str, Change]) -> int:
        """Record what came of the run, report it, then export; returns the exit code."""
        self.run.describe(self.settings, self._facts)
        self.run.write_comparison(comparison)
        print()
        report(self.run.path)
        self._wandb.finish()
        return after_training(self.run.path, self.settings.export)


def resume_note(checkpoint: Path, training: Training, run: RunFolder, scored: bool | None) -> str:
    """Where a run resumes; `scored`: the scores from before training are kept, None: none are
    wanted."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    total = training.max_steps if training.max_steps >= 0 else state["max_steps"]
    epochs = math.ceil(training.num_train_epochs)
    if training.max_steps < 0 and state.get("num_train_epochs", epochs) != epochs:
        total = f"{training.num_train_epochs:g} epochs"
    inside = checkpoint.is_relative_to(run.path)
    where = checkpoint.relative_to(run.path) if inside else checkpoint
    note = f"Resuming from step {state['global_step']} of {total} ({where})"
    if scored is None:
        return note
    return f"{note}; the scores from before training are {'kept' if scored else 'taken again'}"


def report(run: Path) -> None:
    """Write card, plots and page of a run, and print its table: `./run report`, as a person would.

    In a separate process, so that neither a fault in it nor a kill costs the run anything.
    """
    if code := run_script("report", str(run)):
        again = f"{run_command()} report {shown(run)}"
        print(f"note: the report is not complete (exit code {code}); {again} makes it")


def after_training(run: Path, export: Export) -> int:
    """Export what `export.to` names; returns the exit code, 4 if a file failed its parity gate.

    In a separate process: this one has Unsloth's patches in transformers and peft,
    and its model in memory; an export has to load without them.
    """
    if not export.to:
        return 0
    if "torch" in sys.modules:  # it keeps the memory of the largest step, which the gate needs
        free_memory()
    section = json.dumps(export.model_dump(mode="json"))
    print("\nExporting")
    return run_script("export", str(run), f"export={section}")
