"""Read rows from local files, dataset folders and the hub, each with its file and number."""

import contextlib
import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from posttrain.base.errors import DataError, did_you_mean, first_line, given, hub_errors, kind_of
from posttrain.base.paths import ROOT, here_or_project
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
        """The checked_text() in a column."""
        what = f"{self.where}: column '{column}'"
        return checked_text(self.value(column), what, may_be_empty)

    def value(self, column: str) -> Any:
        """The value in a column, of any type. Raises a DataError where there is no such column."""
        if column not in self.values:
            hint = did_you_mean(column, self.values, 0.75)
            message = f"there is no column '{column}'.{hint} Map it under data.columns."
            raise DataError(f"{self.where}: {message}")
        return self.values[column]


def checked_text(value: Any, what: str, may_be_empty: bool = False) -> str:
    """`value` without white space at its ends; `what` names it in an error message. Raises a
    DataError where it is not text, has half a surrogate pair, or is empty and may not be."""
    if not isinstance(value, str):
        raise DataError(f"{what} should hold text, got {given(value)}")
    if not value.strip() and not may_be_empty:
        raise DataError(f"{what} is empty")
    if _SURROGATE.search(value):
        raise DataError(f"{what} contains half a surrogate pair")
    return value.strip()


def read_rows(source: Source) -> list[Row]:
    """All rows of a local file, dataset folder or hub dataset. Raises a DataError without any."""
    hub_file = source.path.startswith(HUB_FILE)
    path = _hub_file(source) if hub_file else here_or_project(source.path)
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
            raise DataError(
                f"{source.path}: not UTF-8 text at byte {error.start}; save it as UTF-8 (in Excel "
                f"'CSV UTF-8'), or convert it from UTF-16 or Windows-1252 with iconv"
            ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{source.path}: not a complete gzip file: {error}") from None
        except OSError as error:
            reason = error.strerror or first_line(error)  # pyarrow's, of a damaged file
            raise DataError(f"{source.path}: cannot be read: {reason}") from None
    elif path.is_dir():
        rows = _from_datasets(source, path)
    elif reader is not None or source.path.startswith((".", "/", "~")):
        folders = dict.fromkeys((str(Path.cwd()), str(ROOT)))
        absolute = os.path.isabs(os.path.expanduser(source.path))
        searched = "" if absolute else f" (looked in {' and '.join(folders)})"
        raise DataError(f"{source.path}: no such file{searched}")
    else:
        rows = _from_hub(source)
    if not rows:
        raise DataError(f"{source.path}: contains no rows")
    return rows


def _open(path: Path, newline: str | None = None) -> TextIO:
    opener: Any = gzip.open if path.suffix.lower() == GZIP else open
    file: TextIO = opener(path, "rt", encoding="utf-8-sig", newline=newline)
    return file


def _read_json(path: Path, name: str) -> Iterator[Row]:
    """JSON Lines, a list of rows, or an object that holds one such list, whatever the suffix is."""
    with _open(path) as file:
        filled = (line for line in file if line.strip())
        first, more = next(filled, ""), next(filled, "")
    lines = ".json" not in (path.suffix.lower(), path.with_suffix("").suffix.lower())
    with contextlib.suppress(RecursionError, ValueError):
        lines = lines or (bool(more) and isinstance(json.loads(first), dict))
    rows: Iterable[tuple[int, Any]]
    with _open(path) as file:
        if lines and first.lstrip()[:1] != "[":
            numbered = ((n, line) for n, line in enumerate(file, start=1) if line.strip())
            rows = ((n, _parsed(line, f"{name}: row {n}")) for n, line in numbered)
        else:
            rows = enumerate(_list_of_rows(_parsed(file.read(), name, line=True), name), start=1)
        for number, value in rows:
            where = f"{name}: row {number}"
            if not isinstance(value, dict):
                raise DataError(f"{where}: expected an object with columns, got {kind_of(value)}")
            yield Row(value, where)


def _list_of_rows(value: Any, name: str) -> list[Any]:
    """The value of a file if it is a list, or the one list in it if it is an object."""
    got = kind_of(value)
    if isinstance(value, dict):
        lists = {key: inner for key, inner in value.items() if isinstance(inner, list)}
        count = f"{len(lists)} lists ({', '.join(lists)})" if lists else "no list"
        got = f"an object with {count}; keep one list alone"
        value = lists.popitem()[1] if len(lists) == 1 else None
    if not isinstance(value, list):
        raise DataError(f"{name}: expected a list of rows, got {got}")
    return value


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
        reader = csv.DictReader(file, delimiter=sign, strict=True)
        try:
            header = list(reader.fieldnames or ())
            twice = [column for column in header if header.count(column) > 1]
            if twice:
                raise DataError(f"{name}: two columns are called '{twice[0]}'; remove one")
            for number, value in enumerate(reader, start=1):
                if None in value:
                    raise DataError(
                        f"{name}: row {number} has more cells than the header, which has "
                        f"{len(header)} with {sign!r} between them"
                    )
                yield Row(value, f"{name}: row {number}")
        except csv.Error as error:
            line = reader.reader.line_num
            raise DataError(f"{name}: line {line}: not valid CSV: {error}") from None


def _read_tsv(path: Path, name: str) -> Iterator[Row]:
    """Rows below a header, of one word a column where there are two; or MGSM's format: question,
    tab, answer on each line, and no header."""
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            cells = line.rstrip("\r\n").split("\t")
            if number == 1 and (len(cells) > 2 or all(map(str.isidentifier, cells))):
                yield from _read_csv(path, name, "\t")
                return
            if len(cells) != 2:
                raise DataError(
                    f"{name}: row {number} has {len(cells)} cells; expected question, tab, answer, "
                    "or a header of one word a column"
                )
            yield Row({"question": cells[0], "answer": cells[1]}, f"{name}: row {number}")


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
                    near = did_you_mean(source.split, loaded)
                    raise DataError(f"{source.path}: there is no split '{source.split}'.{near}")
                loaded = loaded[source.split]
        else:
            kinds = _kinds_of_files(folder)
            if len(kinds) > 1:
                raise DataError(
                    f"{source.path}: the folder contains {' and '.join(kinds)} files, and only one "
                    "kind would be read; name one file, or keep one kind in the folder"
                )
            # pandas would read the text "NA" or "null" in a CSV cell as a missing value.
            more = {"keep_default_na": False} if kinds == [".csv"] else {}
            loaded = datasets.load_dataset(str(folder), source.subset, split=source.split, **more)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{source.path}: cannot load the dataset folder: {reason}") from None
    return _first_rows(source, loaded)


def _kinds_of_files(folder: Path) -> list[str]:
    """The kinds of data files in a folder; none where its card lists the files to read."""
    card = folder / "README.md"
    if card.exists() and b"data_files:" in card.read_bytes():
        return []
    suffixes = {path.suffix.lower() for path in folder.rglob("*.*")} & _READERS.keys()
    return sorted({{".json": ".jsonl", ".tsv": ".csv"}.get(name, name) for name in suffixes})


def _hub_file(source: Source) -> Path:
    """Download one file of a hub dataset, `hf://datasets/OWNER/NAME/FILE`; returns its path."""
    from huggingface_hub import hf_hub_download

    owner, name, file = (*source.path.removeprefix(HUB_FILE).split("/", 2), "", "")[:3]
    if not (owner and name and file):
        raise DataError(f"{source.path}: expected {HUB_FILE}OWNER/NAME/FILE")
    repo = f"{owner}/{name}"
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=source.revision))
    except hub_errors(ValueError) as error:
        raise DataError(f"{source.path}: not in reach on the hub: {first_line(error)}") from None


def _from_hub(source: Source) -> list[Row]:
    import datasets

    try:
        loaded = datasets.load_dataset(
            source.path, source.subset, split=source.split, revision=source.revision
        )
    except hub_errors(RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise DataError(
            f"{source.path}[{source.split}]: neither a local file or folder nor a dataset "
            f"in reach on the hub{offline}: {first_line(error)}"
        ) from None
    return _first_rows(source, loaded)


def _first_rows(source: Source, loaded: Iterable[dict[str, Any]]) -> list[Row]:
    """The rows up to the limit: of a large set no others are in memory."""
    name = f"{source.path}[{source.split}]"
    return [Row(v, f"{name}: row {n}") for n, v in enumerate(islice(loaded, source.limit), 1)]
