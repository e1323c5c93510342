"""Read rows from local files, dataset folders and the hub, each with its file and number."""

import csv
import gzip
import json
import os
import re
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from posttrain.base.errors import DataError, did_you_mean, first_line
from posttrain.base.expected import given, kind_of
from posttrain.base.paths import ROOT
from posttrain.settings import Source

HUB_FILE = "hf://datasets/"
GZIP = ".gz"
LONGEST_CELL = 2**31 - 1  # characters; the csv module takes 131,072 if nothing else is set
_SURROGATE = re.compile("[\ud800-\udfff]")


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
    if _SURROGATE.search(value):
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
    kind = path.with_suffix("").suffix if path.suffix.lower() == GZIP else path.suffix
    reader = _READERS.get(kind.lower())
    if path.is_file():
        if reader is None:
            raise DataError(
                f"{source.path}: cannot read '{path.suffix}' files; use {', '.join(_READERS)}, or "
                f"one of these with {GZIP} after it"
            )
        try:
            rows = list(islice(reader(path, source.path), source.limit))
        except UnicodeDecodeError as error:
            raise DataError(f"{source.path}: {_encoding(path, error)}") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{source.path}: not a complete gzip file: {error}") from None
        except OSError as error:
            raise DataError(f"{source.path}: cannot be read: {error.strerror}") from None
    elif path.is_dir():
        rows = _from_datasets(source, path)
    elif reader is not None or source.path.startswith((".", "/", "~")):
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
    with gzip.open(path) if path.suffix.lower() == GZIP else open(path, "rb") as file:
        start = file.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff"):
        kind, name = "it is UTF-16", "UTF-16"
    else:
        kind, name = "it is probably Windows-1252, as Excel writes", "WINDOWS-1252"
    return (
        f"not UTF-8 text at byte {error.start}; {kind}. Save it as UTF-8 (in Excel 'CSV UTF-8'), "
        f"or convert it: iconv -f {name} -t UTF-8 {shlex.quote(str(path))} > new{path.suffix}"
    )


def _open(path: Path, newline: str | None = None) -> TextIO:
    if path.suffix.lower() == GZIP:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return open(path, encoding="utf-8-sig", newline=newline)


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with columns, found {kind_of(value)}")
    return Row(value, where)


def _read_json(path: Path, name: str) -> Iterator[Row]:
    """JSON Lines, a list of rows, or an object that holds one such list, whatever the suffix is."""
    with _open(path) as file:
        filled = (line for line in file if line.strip())
        first, more = next(filled, ""), next(filled, "")
    lines = ".json" not in (path.suffix.lower(), path.with_suffix("").suffix.lower())
    if first.lstrip()[:1] != "[" if lines else more and _is_object(first):
        yield from _read_lines(path, name)
        return
    with _open(path) as file:
        values = _parsed(file.read(), name, line=True)
    if isinstance(values, dict):
        lists = {key: value for key, value in values.items() if isinstance(value, list)}
        if len(lists) != 1:
            held = (
                f"an object with {len(lists)} lists ({', '.join(lists)})" if lists else "an object"
            )
            raise DataError(f"{name}: expected a list of rows, found {held}; write one list alone")
        (values,) = lists.values()
    if not isinstance(values, list):
        raise DataError(f"{name}: expected a list of rows, found {kind_of(values)}")
    for number, value in enumerate(values, start=1):
        yield _object(value, f"{name}: row {number}")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (RecursionError, ValueError):
        return False


def _read_lines(path: Path, name: str) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{name}: row {number}"
                yield _object(_parsed(line, where), where)


def _parsed(text: str, where: str, line: bool = False) -> Any:
    """The value of a JSON text; `line`: an error names its line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f" line {error.lineno}:" if line else ""
        raise DataError(f"{where}:{at} not valid JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where}: not readable JSON: {error}") from None


def _read_csv(path: Path, name: str, sign: str | None = None) -> Iterator[Row]:
    """Rows below a header, divided by the sign that divides the header most often."""
    csv.field_size_limit(LONGEST_CELL)
    with _open(path, newline="") as file:
        if sign is None:
            names = re.sub(r'"[^"]*"', "", file.readline())
            sign = max(",;\t|", key=names.count)  # the first of equals
            file.seek(0)
        reader = csv.DictReader(file, delimiter=sign)
        try:
            header = list(reader.fieldnames or ())
            twice = [column for column in header if header.count(column) > 1]
            if twice:
                raise DataError(f"{name}: the column '{twice[0]}' is there twice; keep one")
            for number, value in enumerate(reader, start=1):
                if None in value:
                    raise DataError(
                        f"{name}: row {number} has more cells than the header, which has "
                        f"{len(header)} with {sign!r} between them"
                    )
                yield Row(value, f"{name}: row {number}")
        except csv.Error as error:
            raise DataError(f"{name}: line {reader.line_num}: not valid CSV: {error}") from None


def _read_tsv(path: Path, name: str) -> Iterator[Row]:
    """Rows below a header; or MGSM's format: question, tab, answer on each line, and no header."""
    with _open(path) as file:
        cells = file.readline().rstrip("\r\n").split("\t")
    if len(cells) > 2 or cells == ["question", "answer"]:
        yield from _read_csv(path, name, "\t")
        return
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) != 2:
                raise DataError(
                    f"{name}: row {number} has {len(cells)} cells; expected question, tab, answer, "
                    "or a header of three columns or more"
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
    ".jsonl": _read_json,
    ".ndjson": _read_json,
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
            kinds = _kinds_of_files(folder)
            if len(kinds) > 1:
                raise DataError(
                    f"{source.path}: the folder holds {' and '.join(kinds)} files, of which one "
                    "kind alone would be read; name one file, or keep one kind in the folder"
                )
            # pandas would read the text "NA" or "null" in a CSV cell as a missing value.
            options = {"keep_default_na": False} if kinds == [".csv"] else {}
            loaded = datasets.load_dataset(
                str(folder), source.subset, split=source.split, **options
            )
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{source.path}: cannot load the dataset folder: {reason}") from None
    return _first_rows(source, loaded)


def _kinds_of_files(folder: Path) -> list[str]:
    """The kinds of data files in a folder; none where its card says which files to read."""
    card = folder / "README.md"
    if card.exists() and "data_files:" in card.read_text(encoding="utf-8", errors="replace"):
        return []
    suffixes = {path.suffix.lower() for path in folder.rglob("*.*")} & _READERS.keys()
    return sorted({{".json": ".jsonl", ".tsv": ".csv"}.get(name, name) for name in suffixes})


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
