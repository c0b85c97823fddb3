"""A tokenizer read from its files by the `tokenizers` library alone, with as much of transformers'
interface as reading needs: importing transformers takes longer than answering a question.

Of the byte-pair kind, described in full by `tokenizer.json`. Whether it gives what transformers
gives is tried once for every backbone (`core.probe`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clara_cli.core.loading import as_artefact_errors, check_folder, read_settings
from clara_cli.storage.file_kinds import read_file

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")


class FastTokenizer:
    """`tokenizer.json` and the special tokens that `tokenizer_config.json` names."""

    is_fast = True

    def __init__(
        self, backend: Any, settings: dict[str, Any], template: str | None, name: str
    ) -> None:
        self.backend, self.chat_template, self.name_or_path = backend, template, name
        self.special_tokens_map = {
            key: content(settings[key]) for key in NAMED if settings.get(key) is not None
        }
        self._extra = [content(token) for token in settings.get("extra_special_tokens") or ()]

    @property
    def bos_token(self) -> str | None:
        """What begins a text."""
        return self.special_tokens_map.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """What ends one."""
        return self.special_tokens_map.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Its id."""
        return None if self.eos_token is None else self.backend.token_to_id(self.eos_token)

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token that the settings name, once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """The tokens beside the vocabulary, by id."""
        added: dict[int, Any] = self.backend.get_added_tokens_decoder()
        return added

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def add_tokens(self, tokens: list[str], special_tokens: bool = False) -> int:
        """Add tokens; the number of new ones."""
        add = self.backend.add_special_tokens if special_tokens else self.backend.add_tokens
        return int(add(tokens))

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or those of several."""
        if isinstance(tokens, str):
            return self.backend.token_to_id(tokens)
        return [self.backend.token_to_id(token) for token in tokens]

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        """The token of an id."""
        token: str | None = self.backend.id_to_token(token_id)
        return token

    def __call__(
        self,
        text: str,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        return_offsets_mapping: bool = False,
    ) -> dict[str, list[Any]]:
        """`input_ids` of a text, and `offset_mapping` where it is wanted: (start, end) code points
        of each token. `split_special_tokens` reads special tokens as plain characters."""
        self.backend.encode_special_tokens = split_special_tokens
        encoding = self.backend.encode(text, add_special_tokens=add_special_tokens)
        encoded: dict[str, list[Any]] = {"input_ids": encoding.ids}
        if return_offsets_mapping:
            encoded["offset_mapping"] = encoding.offsets
        return encoded

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ids."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))


def content(token: str | dict[str, Any]) -> str:
    """The characters of a token, which settings give with or without its properties."""
    return token if isinstance(token, str) else str(token["content"])


def read_tokenizer(folder: Path, what: str) -> FastTokenizer | None:
    """The tokenizer of a backbone's folder; None where its files are of another kind. `what` names
    it in errors.

    Raises:
        ArtefactError: for a folder that names code of its own, and damaged files.
    """
    from tokenizers import Tokenizer

    check_folder(folder, what)
    files = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not all(file.is_file() for file in files):
        return None
    settings = read_settings(files[1], what)
    if not isinstance(settings, dict) or settings.get("tokenizer_class") not in PLAIN_CLASSES:
        return None
    with as_artefact_errors(what):
        backend = Tokenizer.from_file(str(files[0]))
        backend.no_truncation()
        backend.no_padding()
        if type(backend.model).__name__ != "BPE":
            return None
        file = folder / "chat_template.jinja"
        own = read_file(file).decode() if file.is_file() else settings.get("chat_template")
        if own is not None and not isinstance(own, str):
            return None
        return FastTokenizer(backend, settings, own, str(folder))
