"""Weights & Biases: a mirror of the run folder, for users with an account or of offline files.

The run folder stays the record: metrics have the names of metrics.jsonl (its `step` and `seconds`
are W&B's own `_step` and `_runtime`), and tables, pictures and artifacts are made from its files.
Not transformers' callback, which renames every metric, lets a failure of W&B end the training, and
knows neither samples nor scores nor a resumed run.

On when there is a key (WANDB_API_KEY, or ~/.netrc), `tracking.report_to` names wandb, or WANDB_MODE
is offline, which needs no key. Offline where the key cannot be used or the server does not answer.
W&B's own WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and WANDB_BASE_URL apply.
"""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from posttrain.base.errors import first_line
from posttrain.base.files import jsonl_rows, not_finite, write_text
from posttrain.base.paths import run_command
from posttrain.run.folder import RunFolder, environment
from posttrain.run.record import read_run
from posttrain.settings.section import Section
from posttrain.train.callback import Callback

TABLE_ROWS = 1000
START_SECONDS = 20.0  # until W&B goes offline without an answer, unless WANDB_INIT_TIMEOUT says
FINISH_SECONDS = 300.0  # to wait for uploads at the end; what is missing then is still on disk


def choose(requested: bool) -> tuple[Literal["off", "offline", "online"], str]:
    """Whether and how W&B takes part, and why, decided before it starts so that it never prompts.
    `requested`: the settings name wandb. The client is imported only where a key may be."""
    requested = requested or os.environ.get("WANDB_MODE") == "offline"
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    netrc = any(os.path.exists(os.path.expanduser(name)) for name in names)
    hints = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    if not (requested or any(map(os.environ.get, hints)) or netrc):
        return "off", ""
    import wandb
    from wandb.sdk.lib import wbauth

    settings = wandb.setup().settings
    if settings.mode == "disabled":
        return "off", ""
    try:
        key = wbauth.authenticate_session(
            host=settings.base_url, source="choose", prompt=False, update_session=False
        )
    except wandb.Error as error:
        return "offline", f"its key cannot be used ({error})"
    if not (key or requested):
        return "off", ""
    if settings.mode == "offline":
        return "offline", "WANDB_MODE is offline"
    if not key:
        return "offline", "there is no key (WANDB_API_KEY, or `wandb login`)"
    return "online", ""


def harmless(method: Callable[..., None]) -> Callable[..., None]:
    """A failure of W&B is reported once, and ends W&B's part instead of the run."""

    def guarded(self: "WandbLog", *args: Any, **kwargs: Any) -> None:
        if not self.active:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.active = False
            print(f"W&B failed and is left out from now on: {error}")

    return guarded


class WandbLog(Callback):
    """One W&B run beside the run folder. Does nothing unless W&B is on."""

    def __init__(self, folder: RunFolder, settings: Section) -> None:
        self.active = True
        self._folder = folder
        self._settings = settings.model_dump(mode="json")
        self._data = ""
        self._run: Any = None
        self._step = 0

    @harmless
    def start(self, facts: Mapping[str, Any]) -> None:
        """Open a run, or the one that the run folder names, if W&B is on. `facts` are shown as its
        environment; `data` among them is the fingerprint of the data."""
        os.environ.setdefault("WANDB_SILENT", "true")  # one line of ours replaces its own
        mode, why = choose("wandb" in self._settings["tracking"]["report_to"])
        self.active = mode != "off"
        if mode == "online":
            try:
                self._init("online", facts)
                print(f"W&B: {self._run.url}")
            except Exception as error:  # a wrong key, a server that does not answer
                import wandb

                wandb.teardown()  # it still holds the run's id
                mode, why = "offline", f"no run on the server ({first_line(error)})"
        if mode == "offline":
            self._init("offline", facts)
            upload = f"{run_command()} python -m wandb sync {Path(self._run.dir).parent}"
            print(f"W&B: {why}, so its files stay here; upload them with {upload}")
        self._data = facts["data"]
        rows = jsonl_rows(self._folder.metrics, []) if self._folder.metrics.exists() else []
        self._step = max((row["step"] for row in rows), default=0)  # of a resumed run

    def _init(self, mode: Literal["offline", "online"], facts: Mapping[str, Any]) -> None:
        import wandb

        known = self._folder.path / "wandb" / "run_id.txt"
        if not known.exists():
            known.parent.mkdir(exist_ok=True)
            write_text(known, f"{secrets.token_hex(4)}\n")
        waits = os.environ.get("WANDB_INIT_TIMEOUT", START_SECONDS) if mode == "online" else 60
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "posttrain"),
            name=self._settings["run"]["name"],
            id=known.read_text(encoding="utf-8").strip(),
            resume="allow",
            mode=mode,
            dir=str(self._folder.path),
            config={**self._settings, "environment": {**environment(), **facts}},
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,  # a remote's address may hold a password
                init_timeout=float(waits),
                finish_timeout=FINISH_SECONDS,
            ),
        )

    @harmless
    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Pass on what the trainer logs, except for NaN and infinity."""
        self._step = state.global_step
        known = {k: v for k, v in logs.items() if v is not None and not not_finite(v)}
        self._run.log(known, step=self._step)

    @harmless
    def tables(self, *_: Any, **__: Any) -> None:
        """samples.jsonl and every eval/*.jsonl as a table, the newest rows of each."""
        import wandb

        files = [self._folder.samples, *sorted((self._folder.path / "eval").glob("*.jsonl"))]
        for path in files:
            rows = jsonl_rows(path)[-TABLE_ROWS:] if path.exists() else []
            if not rows:
                continue
            columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
            cells = [[_cell(row.get(str(name))) for name in columns] for row in rows]
            table = wandb.Table(columns, cells, allow_mixed_types=True)
            name = str(path.relative_to(self._folder.path).with_suffix(""))
            self._run.log({f"tables/{name}": table}, step=self._step)

    on_save = on_train_end = tables

    @harmless
    def finish(self) -> None:
        """Log scores, plots and artifacts of a finished run; then close."""
        import wandb

        self.tables()
        record = read_run(self._folder.path)
        for name in ("before", "after", "comparison"):
            for measure, values in getattr(record, name).items():
                for key, value in asdict(values).items():
                    self._run.summary[f"eval/{name}/{measure}/{key}"] = value
        for path in sorted((self._folder.path / "plots").glob("*.png")):
            self._run.log({f"plots/{path.stem}": wandb.Image(str(path))}, step=self._step)
        after = {name: asdict(measure) for name, measure in record.after.items()}
        self._artifact("adapter", "model", ["adapter"], after)
        records = ["report.html", "config.yaml", "environment.json", "eval", "plots", "data"]
        self._artifact("report", "report", records, {})
        self.close(0)

    @harmless
    def close(self, exit_code: int) -> None:
        """End W&B's run as finished (0) or failed; a resumed run opens it again."""
        self._run.finish(exit_code=exit_code)
        self.active = False

    def _artifact(self, what: str, kind: str, names: list[str], facts: dict[str, Any]) -> None:
        """Log those of the files and folders that exist as one artifact."""
        import wandb

        paths = [p for p in (self._folder.path / name for name in names) if p.exists()]
        if not paths:
            return
        metadata = {"data": self._data, "model": self._settings["model"]["name"], **facts}
        name = f"{self._settings['run']['name']}-{what}"
        artifact = wandb.Artifact(name, kind, metadata=metadata)
        for path in paths:
            add = artifact.add_dir if path.is_dir() else artifact.add_file
            inside = path.name if len(names) > 1 else None
            # "immutable": W&B reads the file where it is and keeps no second copy.
            add(str(path), inside, skip_cache=True, policy="immutable")
        self._run.log_artifact(artifact)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
