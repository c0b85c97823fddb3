"""Datasets of the Hugging Face Hub, streamed by name: `hf:OWNER/NAME[/CONFIG][:SPLIT]`.

The only importer of `datasets`. Reads formats that are data alone: nothing fetched is run or
unpickled. Knows nothing of what a record means.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clara_cli.errors import ArtefactError, UsageError

FORMATS = ("arrow", "csv", "json", "parquet", "text")
_FORM = "a dataset is hf:OWNER/NAME, perhaps with /CONFIG and :SPLIT, or hf:./FOLDER"


def stream_rows(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a dataset in order, one in memory at a time; columns of images, sound and bytes
    are left out. `name` is OWNER/NAME[/CONFIG][:SPLIT] (the split is train unless named) or a
    local folder, which begins with `.` or `/`.

    Raises UsageError for another form, a configuration or a split that does not exist, or a
    dataset that is not plain data, and ArtefactError where the Hub cannot be reached or has none.
    """
    path, config, split = _parts(name)
    import datasets
    from datasets import load_dataset, load_dataset_builder
    from datasets.utils.logging import disable_progress_bar, set_verbosity_error

    set_verbosity_error()
    disable_progress_bar()
    with _explained(name):
        form = type(load_dataset_builder(path, config)).__module__.split(".")[-1]
        if form not in FORMATS:
            message = f"hf:{name} is of the format {form!r}, not read"
            raise UsageError(message, f"formats that are read: {', '.join(FORMATS)}")
        rows = load_dataset(path, config, split=split, streaming=True)
        features = rows.features or {}
        plain = (datasets.Value, datasets.ClassLabel, datasets.List, dict)
        odd = [c for c, kind in features.items() if not isinstance(kind, plain) or _bytes(kind)]
        yield from rows.remove_columns(odd) if odd else rows


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


def _bytes(kind: Any) -> bool:
    return str(getattr(kind, "dtype", "")).endswith("binary")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What the library says, as one clear error."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except DatasetNotFoundError as error:
        hint = "check its name; a gated one wants `hf auth login`"
        raise ArtefactError(f"hf:{name}: no such dataset on the Hub, or no access", hint) from error
    except ConnectionError as error:
        message = f"hf:{name}: not downloaded yet, and the Hub cannot be reached"
        raise ArtefactError(message, "connect once, or give local files") from error
    except (ValueError, FileNotFoundError, DatasetsError) as error:
        raise UsageError(f"hf:{name}: {' '.join(str(error).split())[:200]}", _FORM) from error
