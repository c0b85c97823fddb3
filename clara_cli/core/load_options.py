"""How a checkpoint is opened, and what opening one gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from clara_cli.config.common import CheckpointOptions, PlacementOptions
from clara_cli.core.backbone import (
    Backbone,
    backbone_folder,
    first_values_digest,
    load_backbone,
    pick_device,
    pick_dtype,
)
from clara_cli.core.checkpoint_info import CheckpointInfo
from clara_cli.core.fast_tokenizer import read_tokenizer
from clara_cli.core.hub import origin
from clara_cli.core.model import ClaraModel
from clara_cli.core.placement import WHOLE, BackbonePlacement
from clara_cli.core.probe import is_plain, probe
from clara_cli.core.reading_backbone import open_model


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is opened, from a command's options to `load`.

    `name` is what --model takes. `backbone` stands for the one the checkpoint names. `ratio`
    matters only where a Hub repository holds one released checkpoint per ratio. `verify` compares
    every stored byte with the checkpoint's digests; else sizes and a sample of every tensor are.
    `only_reads` says that nothing will be trained or saved.
    """

    name: str
    backbone: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    placement: BackbonePlacement = WHOLE
    ratio: int | None = None
    verify: bool = False
    only_reads: bool = False

    @classmethod
    def of(
        cls,
        config: CheckpointOptions,
        name: str,
        ratio: int | None = None,
        verify: bool = False,
        only_reads: bool = False,
    ) -> LoadOptions:
        """The options of a command, for the checkpoint `name`."""
        device_map = config.device_map if isinstance(config, PlacementOptions) else None
        placement = BackbonePlacement(config.load_in, device_map)
        place = (config.backbone, config.device, config.dtype, placement)
        return cls(name, *place, ratio, verify, only_reads)

    def open_for_reading(self, source: str, revision: str | None = None) -> Backbone | None:
        """A backbone without transformers, None where that is not wanted or cannot be (yet: the
        first time transformers opens it and tries whether it can).

        Raises:
            ArtefactError: where it cannot be had, or is damaged.
        """
        if not self.only_reads or self.placement:
            return None
        folder, what = backbone_folder(source, revision), f"backbone {source}"
        if not is_plain(Backbone(None, None, source, revision, folder)):
            return None
        device = pick_device(self.device)
        model = open_model(folder, what, pick_dtype(self.dtype, device))
        tokenizer = read_tokenizer(folder, what)
        if model is None or tokenizer is None:
            return None
        model.to(device)
        fetched = origin(folder)
        commit = fetched[1] if fetched else revision
        return Backbone(model, tokenizer, source, commit, folder, first_values_digest(model))

    def open_backbone(self, source: str, revision: str | None = None) -> Backbone:
        """A backbone as these options place it, found to be readable by embeddings; one that is
        going to be spread, in main memory.

        Raises:
            ArtefactError: where it cannot be had, or read.
        """
        device = pick_device(self.device)
        dtype = pick_dtype(self.dtype, device)
        quantised = self.placement.arguments(device, dtype)
        first = torch.device("cpu") if self.placement.spreads else device
        return probe(load_backbone(source, first, dtype, revision, quantised))


@dataclass
class Loaded:
    """A checkpoint in memory: the model, what it says of itself, and where it lies."""

    model: ClaraModel
    info: CheckpointInfo
    path: Path
    name: str
