"""Files of the Hugging Face Hub's datasets, by name: `hf:OWNER/NAME[/CONFIG][:SPLIT]`.

The only importer of `datasets`. Reads formats that are data alone: nothing fetched is run or
unpickled. Knows nothing of what a record means.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clara_cli.documents.listing import Source, kind_of
from clara_cli.errors import ArtefactError, UsageError

FORMATS = {"csv": "csv", "json": "json", "parquet": "parquet", "text": "text"}  # and how read
_FORM = "a dataset is hf:OWNER/NAME, perhaps with /CONFIG and :SPLIT, or hf:./FOLDER"


def dataset_sources(source: Source) -> list[Source]:
    """The files of a dataset's split, to be read as the same files given directly are: no library
    in between guesses types or leaves fields out. `source.label` is OWNER/NAME[/CONFIG][:SPLIT]
    (the split is train unless named) or a local folder, which begins with `.` or `/`.

    Raises UsageError for another form, a configuration or a split that does not exist, or a
    dataset that is not plain data, and ArtefactError where the Hub cannot be reached or has none.
    """
    name = source.label
    path, config, split = _parts(name)
    from datasets import load_dataset_builder
    from datasets.utils.logging import disable_progress_bar, set_verbosity_error

    set_verbosity_error()
    disable_progress_bar()
    with _explained(name):
        builder = load_dataset_builder(path, config)
        form = type(builder).__module__.split(".")[-1]
        if form not in FORMATS:
            message = f"hf:{name} is of the format {form!r}, not read"
            raise UsageError(message, f"formats that are read: {', '.join(FORMATS)}")
        files: dict[str, list[str]] = builder.config.data_files or {}
        if split not in files:
            raise ValueError(f"Bad split: {split}. Available splits: {sorted(map(str, files))}")
    return [_file_of(source, path, file, FORMATS[form]) for file in files[split]]


def _file_of(source: Source, dataset: str, file: str, kind: str) -> Source:
    """One file of a dataset: a local one, or by its address on the Hub."""
    if "::" in file:
        message = f"{source.name}: its files are in an archive, not read"
        raise UsageError(message, "fetch and unpack them, and give the folder")
    if "://" in file:
        inside = file.partition("@")[2].partition("/")[2] or file
        label, name = inside, f"{source.name}/{inside}"
        path, kind = Path(inside), kind_of(Path(inside)) or kind
        return Source(path, label, name, kind, source.fields, file, source.input)
    path = Path(file)
    label = path.relative_to(Path(dataset).absolute()).as_posix()
    kind = kind_of(path) or kind
    return Source(path, label, str(path), kind, source.fields, input=source.input)


def _parts(name: str) -> tuple[str, str | None, str]:
    path, _, split = name.partition(":")
    if path.startswith((".", "/")):
        if not Path(path).is_dir():
            raise UsageError(f"hf:{name}: no such folder", _FORM)
        return path, None, split or "train"
    owner, *rest = path.split("/")
    if len(rest) not in (1, 2) or not all((owner, *rest)):
        raise UsageError(f"hf:{name} names no dataset", _FORM)
    return f"{owner}/{rest[0]}", rest[1] if rest[1:] else None, split or "train"


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What the library says, as one clear error."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except DatasetNotFoundError as error:
        hint = "check its name; a gated one needs `hf auth login`"
        raise ArtefactError(f"hf:{name}: no such dataset on the Hub, or no access", hint) from error
    except ConnectionError as error:
        message = f"hf:{name}: not downloaded yet, and the Hub cannot be reached"
        raise ArtefactError(message, "connect once, or give local files") from error
    except (ValueError, FileNotFoundError, DatasetsError) as error:
        raise UsageError(f"hf:{name}: {' '.join(str(error).split())[:200]}", _FORM) from error
