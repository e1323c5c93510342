"""Read rows from local files, dataset folders and the hub, each with its file and number."""

import csv
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.base.errors import DataError, did_you_mean, first_line
from posttrain.base.expected import given, kind_of
from posttrain.base.paths import ROOT, run_command
from posttrain.settings import Source

HUB_FILE = "hf://datasets/"


@dataclass(frozen=True)
class Row:
    """One row of a dataset, with its file and number for error messages."""

    values: dict[str, Any]
    where: str

    def text(self, column: str, may_be_empty: bool = False) -> str:
        """The text in a column, without white space at its ends.

        Raises:
            DataError: the column is missing, is not text, or is empty and may not be.
        """
        what = f"{self.where}: column '{column}'"
        return checked_text(self.value(column), what, may_be_empty)

    def value(self, column: str) -> Any:
        """The value in a column, of any type.

        Raises:
            DataError: the column is missing.
        """
        if column not in self.values:
            raise DataError(
                f"{self.where}: there is no column '{column}'.{did_you_mean(column, self.values)} "
                "Map it under data.columns."
            )
        return self.values[column]


def checked_text(value: Any, what: str, may_be_empty: bool = False) -> str:
    """`value` without white space at its ends; `what` names it in an error message.

    Raises:
        DataError: it is not text, holds half of a surrogate pair, or is empty and may not be.
    """
    if not isinstance(value, str):
        raise DataError(f"{what} should hold text, found {given(value)}")
    if not value.strip() and not may_be_empty:
        raise DataError(f"{what} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{what} holds half a surrogate pair")
    return value.strip()


def read_rows(source: Source) -> list[Row]:
    """All rows of a local file, a dataset folder or a hub dataset.

    Raises:
        DataError: it cannot be found or read, or holds no rows.
    """
    hub_file = source.path.startswith(HUB_FILE)
    path = _hub_file(source) if hub_file else Path(source.path).expanduser()
    if not path.is_absolute() and not path.exists() and (ROOT / path).exists():
        path = ROOT / path
    if path.is_file():
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(
                f"{source.path}: cannot read '{path.suffix}' files; use {', '.join(_READERS)}"
            )
        try:
            rows = list(islice(reader(path, source.path), source.limit))
        except UnicodeDecodeError as error:
            raise DataError(f"{source.path}: {_encoding(path, error)}") from None
        except OSError as error:
            raise DataError(f"{source.path}: cannot be read: {error.strerror}") from None
    elif path.is_dir():
        rows = _from_datasets(source, path)
    elif path.suffix.lower() in _READERS or source.path.startswith((".", "/", "~")):
        places = dict.fromkeys((str(Path.cwd()), str(ROOT)))
        searched = "" if path.is_absolute() else f" (looked in {' and '.join(places)})"
        raise DataError(f"{source.path}: no such file{searched}")
    else:
        rows = _from_hub(source)
    if not rows:
        raise DataError(f"{source.path}: holds no rows")
    return rows


def _encoding(path: Path, error: UnicodeDecodeError) -> str:
    """What a text file that is not UTF-8 probably is, and what to do."""
    start = path.read_bytes()[:2]
    if start in (b"\xff\xfe", b"\xfe\xff"):
        kind, name = "it is UTF-16", "UTF-16"
    else:
        kind, name = "it is probably Windows-1252, as Excel writes", "WINDOWS-1252"
    return (
        f"not UTF-8 text at byte {error.start}; {kind}. Save it as UTF-8 (in Excel 'CSV UTF-8'), "
        f"or convert it: iconv -f {name} -t UTF-8 {shlex.quote(str(path))} > new{path.suffix}"
    )


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with columns, found {kind_of(value)}")
    return Row(value, where)


def _read_json(path: Path, name: str) -> Iterator[Row]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{name}: line {error.lineno}: not valid JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise DataError(f"{name}: not readable JSON: {error}") from None
    if not isinstance(values, list):
        raise DataError(f"{name}: expected a list of rows, found {kind_of(values)}")
    for number, value in enumerate(values, start=1):
        yield _object(value, f"{name}: row {number}")


def _read_jsonl(path: Path, name: str) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{name}: row {number}: not valid JSON: {error.msg}") from None
            except (RecursionError, ValueError) as error:
                raise DataError(f"{name}: row {number}: not readable JSON: {error}") from None
            yield _object(value, f"{name}: row {number}")


def _read_csv(path: Path, name: str) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            header = list(reader.fieldnames or ())
            _check_separator(header, name)
            twice = [column for column in header if header.count(column) > 1]
            if twice:
                raise DataError(f"{name}: the column '{twice[0]}' is there twice; keep one")
            for number, value in enumerate(reader, start=1):
                if None in value:
                    raise DataError(f"{name}: row {number} has more cells than the header")
                yield Row(value, f"{name}: row {number}")
        except csv.Error as error:
            raise DataError(f"{name}: line {reader.line_num}: not valid CSV: {error}") from None


def _check_separator(header: list[str], name: str) -> None:
    """Refuse a header of one column that other signs than commas divide.

    Raises:
        DataError: naming the sign.
    """
    if len(header) != 1:
        return
    for sign, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if sign in header[0]:
            raise DataError(
                f"{name}: the columns are divided by {word}, and a CSV file is read with commas; "
                f"save it with commas, or convert it: {run_command()} python -c 'import csv, sys; "
                f'csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter="{sign}"))\' '
                f"< {shlex.quote(name)} > new.csv"
            )


def _read_tsv(path: Path, name: str) -> Iterator[Row]:
    """MGSM's format: question, tab, answer on each line, and no header."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) != 2:
                raise DataError(
                    f"{name}: row {number} has {len(cells)} cells; expected question, tab, answer"
                )
            yield Row(
                dict(zip(("question", "answer"), cells, strict=True)), f"{name}: row {number}"
            )


def _read_parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(1000)
        values = (value for batch in batches for value in batch.to_pylist())
        for number, value in enumerate(values, start=1):
            yield Row(value, f"{name}: row {number}")
    except pyarrow.ArrowException as error:
        raise DataError(f"{name}: not a readable Parquet file: {error}") from None


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}


def _from_datasets(source: Source, folder: Path) -> list[Row]:
    """Rows of a folder that `save_to_disk` wrote, or of a folder of data files."""
    import datasets

    try:
        if any((folder / f).exists() for f in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(folder))
            if isinstance(loaded, datasets.DatasetDict):
                if source.split not in loaded:
                    raise DataError(
                        f"{source.path}: there is no split '{source.split}'."
                        f"{did_you_mean(source.split, loaded)}"
                    )
                loaded = loaded[source.split]
        else:
            # pandas would read the text "NA" or "null" in a CSV cell as a missing value.
            options = {"keep_default_na": False} if any(folder.rglob("*.csv")) else {}
            loaded = datasets.load_dataset(
                str(folder), source.subset, split=source.split, **options
            )
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error
        raise DataError(f"{source.path}: cannot load the dataset folder: {reason}") from None
    return _first_rows(source, loaded)


def _hub_file(source: Source) -> Path:
    """Download one file of a hub dataset, `hf://datasets/OWNER/NAME/FILE`; returns its path."""
    import huggingface_hub

    owner, _, rest = source.path.removeprefix(HUB_FILE).partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise DataError(f"{source.path}: expected {HUB_FILE}OWNER/NAME/FILE")
    try:
        return Path(
            huggingface_hub.hf_hub_download(
                f"{owner}/{name}", file, repo_type="dataset", revision=source.revision
            )
        )
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DataError(f"{source.path}: not in reach on the hub: {reason}") from None


def _from_hub(source: Source) -> list[Row]:
    import datasets

    name = f"{source.path}[{source.split}]"
    try:
        loaded = datasets.load_dataset(
            source.path, source.subset, split=source.split, revision=source.revision
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise DataError(
            f"{name}: neither a local file or folder nor a dataset in reach on the hub{offline}: "
            f"{first_line(error)}"
        ) from None
    return _first_rows(source, loaded)


def _first_rows(source: Source, loaded: Iterable[dict[str, Any]]) -> list[Row]:
    """The rows up to the limit: of a large set no others are taken into memory."""
    name = f"{source.path}[{source.split}]"
    return [Row(v, f"{name}: row {n}") for n, v in enumerate(islice(loaded, source.limit), 1)]
