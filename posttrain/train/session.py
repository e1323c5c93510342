"""What a training run does around its training, in one place for all three scripts.

    Session()   read the command line; look for an earlier run in the folder
    start       start Unsloth, check the device
    open        the run folder, described, and W&B
    load        the policy
    resume      its kept_scores: those of an interrupted run, which are not taken again
    train       from the start or from the checkpoint, up to the adapter on the disk
    finish      comparison, report, export

Between these steps a script has its data, rewards, trainer and scores.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from eval.measures import Change
from posttrain.base.disk import check_disk
from posttrain.base.errors import ConfigError, HealthError
from posttrain.base.files import fingerprint
from posttrain.base.paths import here_or_project, run_command, shown
from posttrain.base.process import run_script
from posttrain.data.render import clock_note, set_template_variables
from posttrain.data.text import text_key
from posttrain.model import checks, policy, pretrained, runtime
from posttrain.model.device import check_device, free_memory
from posttrain.model.provenance import TrainedOn, record_before, record_of, write_record
from posttrain.run.folder import RunFolder
from posttrain.run.record import chain_of
from posttrain.run.room import disk_bytes, in_order
from posttrain.settings import DPOSettings, Export, GRPOSettings, SFTSettings
from posttrain.settings.adapters import find_adapter
from posttrain.settings.command import Command, parse_command_line
from posttrain.train import loop
from posttrain.train.resume import Resume
from posttrain.train.validation import Validator
from posttrain.train.wandb_log import WandbLog

BYTES_A_WEIGHT = 16  # in fp32, with two AdamW moments, and room for the tokenizer and the rest
S = TypeVar("S", SFTSettings, DPOSettings, GRPOSettings)
# Where transformers' integrations keep their files, unless the user's environment names a folder.
TRACKER_FOLDERS = {"tensorboard": "TENSORBOARD_LOGGING_DIR", "trackio": "TRACKIO_DIR"}


class Session(Generic[S]):
    """One run of a training script, whose `story` --help shows. Raises ConfigError if command line,
    config or run folder are not fit for one, CheckpointError if every checkpoint is damaged."""

    def __init__(self, settings_class: type[S], story: str | None, argv: list[str] | None) -> None:
        command: Command[S] = parse_command_line(settings_class, story, argv)
        self._command: Command[S] = command
        self.settings: S = command.settings
        self.dry_run = command.dry_run
        self.config = str(command.config)
        self.run = RunFolder(command.output)
        self.done = not command.dry_run and self._is_done()  # the folder holds this run, finished
        if self.done:
            return
        self._refuse_its_own_folder()
        if not command.dry_run or command.output.exists():
            self.run.lock()  # also to look for its checkpoints, which sets damaged ones aside
        self.resume = Resume(self.run, self.settings, command.resume)
        self._facts: dict[str, Any] = {}
        for name, variable in TRACKER_FOLDERS.items():  # before the integrations are imported
            if name in self.settings.tracking.report_to:
                os.environ.setdefault(variable, str(self.run.path / name))

    def _refuse_its_own_folder(self) -> None:
        """Raise ConfigError if a run would move aside what it starts from."""
        model = self.settings.model
        start = here_or_project(model.adapter or model.name).resolve()
        if self._command.resume == "never" and start.is_relative_to(self.run.path.resolve()):
            raise ConfigError(
                f"{self.run.path} holds what this run starts from, and --resume never would move "
                "it aside; give another --output"
            )

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
        return export(path, self.settings.export) if finished else 0

    def end_dry_run(self, rows: Sequence[Any]) -> int:
        """Print how to train, or why that is refused; returns the exit code. `rows` as for open."""
        refused = ""
        try:
            self._is_done()  # refuses a finished run of other settings
            if self.resume.checkpoint:
                self._identify(rows)
        except ConfigError as error:
            refused = f"\nAs it is, that command will be refused: {error}"
        print(f"{self._command.verdict()}{refused}")
        return 0

    def start(self) -> Any:
        """Start Unsloth; returns the tokenizer. Raises ConfigError if the device cannot run this
        config, the tokenizer is not in reach, or the model does not fit the settings."""
        settings = self.settings
        checks.refuse_adapter(settings.model.name)
        pretrained.local_or_hub(settings.model.name)  # refused before anything heavy is loaded
        if settings.model.adapter:
            chain = chain_of(find_adapter(settings.model.adapter))
            self._facts["stages"] = [stage.as_json() for stage in chain]
        policy.check_vllm(settings.model)
        threads = settings.run.threads
        if threads is None and self.resume.checkpoint:
            threads = self.run.threads()
        device = runtime.start(settings.run.verbose, threads)
        print(check_device(device, settings.model, settings.training))
        self._facts |= {"device": device.name, "threads": device.threads}
        tokenizer = pretrained.load_tokenizer(settings.model)
        set_template_variables(tokenizer, settings.prompt.chat_template_kwargs)
        if settings.prompt.examples:
            print(checks.cost_of_examples(tokenizer, settings.prompt))
        checks.check_model(settings, tokenizer)
        if note := clock_note(tokenizer):
            print(note)
        return tokenizer

    def open(self, rows: Sequence[Any], questions: Iterable[str]) -> None:
        """Open the run folder and start W&B; `rows` are all that is trained and scored on, and
        `questions` those trained or validated on. Raises ConfigError if the checkpoint is of other
        settings, data, weights or versions."""
        self._identify(rows)
        record = TrainedOn(set(map(text_key, questions))) | record_before(self.settings.model)
        if checkpoint := self.resume.checkpoint:  # its run may have had other rows
            record |= record_of(str(checkpoint))
        self.run.open(fresh=self._command.resume == "never")
        write_record(self.run.path, record)
        self._facts["scores_of"] = self.run.drop_scores_of_others(self._identity)
        self.run.describe(self.settings, self._facts)
        self._wandb = WandbLog(self.run, self.settings)
        self._wandb.start(self._facts)

    def _identify(self, rows: Sequence[Any]) -> None:
        """Identify this run, and check that the checkpoint is of the same one."""
        self._facts["weights"] = policy.base_weights(self.settings.model)
        self._facts["data"] = fingerprint(rows)
        self._identity = self.run.identity(self.settings, self._facts)
        self.resume.check(self._identity, self._command.resume_anyway)

    def load(self) -> tuple[Any, Any]:
        """The policy and its tokenizer. Raises ConfigError if the model cannot be loaded, or the
        disk is too full for what will be saved."""
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

    def train(
        self,
        trainer: Any,
        changed: dict[str, Any],
        shown: dict[str, str],
        validator: Validator | None,
    ) -> int | None:
        """Train and save the adapter. Returns None if the policy is to be scored now, or the exit
        code of a run that stopped early or is not to be scored (run.score).

        `changed` are the arguments that a library changed; `shown` and `validator` are those of
        loop.train, which also says what is raised.
        """
        trainer.add_callback(self._wandb)
        start = self.resume.checkpoint, self._identity
        try:
            result = loop.train(trainer, self.settings, self.run, shown, *start, validator)
        except HealthError:
            report(self.run.path)
            raise
        self._facts |= {"changed_arguments": changed, "trained": result}
        if "kept" in result:
            self._facts["kept"] = result.pop("kept")
        if "exit_code" not in result:
            policy.save_adapter(*self._policy, self.run.adapter)
            if self.settings.run.score:
                return None
            self.run.describe(self.settings, self._facts)
            if self.settings.export.to:
                print(f"note: not scored, so not exported; {run_command()} export exports it")
            return self._close(0)
        self.run.amend(self._facts)
        print(
            f"Stopped at step {result['steps']} ({result['reason']}). Everything is in "
            f"{self.run.path}; the same command resumes from there"
        )
        return self._close(result["exit_code"])

    def _close(self, exit_code: int) -> int:
        report(self.run.path)
        self._wandb.close(exit_code)
        return exit_code

    def finish(self, comparison: Mapping[str, Change]) -> int:
        """Record what came of the run, report it, then export; returns the exit code."""
        self.run.describe(self.settings, self._facts)
        self.run.write_comparison(comparison)
        print()
        report(self.run.path)
        self._wandb.finish()
        return export(self.run.path, self.settings.export)


# Commands that read the run folder, as a person would. Each is a separate process, so that neither
# a fault in it nor a kill costs the run anything.


def report(run: Path) -> None:
    """Write card, plots and page of a run, and print its table."""
    if code := run_script("report", str(run)):
        again = f"{run_command()} report {shown(run)}"
        print(f"note: the report is not complete (exit code {code}); {again} makes it")


def export(run: Path, settings: Export) -> int:
    """Export what `export.to` names; returns the exit code, 4 if a file failed its parity gate. Not
    in this process, whose transformers and peft Unsloth has patched: it has to load without."""
    if not settings.to:
        return 0
    if "torch" in sys.modules:  # it keeps the memory of the largest step, which the gate needs
        free_memory()
    print("\nExporting")
    return run_script("export", str(run), f"export={json.dumps(settings.model_dump(mode='json'))}")
