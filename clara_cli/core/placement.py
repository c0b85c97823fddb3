"""How a backbone is held: whole on one device, quantised by bitsandbytes, or spread over devices,
main memory and disk by accelerate. Whatever holds it, the roles and what is saved are the same.
"""

from __future__ import annotations

import logging
import tempfile
import weakref
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clara_cli.core.model import ClaraModel
from clara_cli.errors import UsageError, first_line
from clara_cli.extras import install_command
from clara_cli.storage.artefact import parse
from clara_cli.storage.file_kinds import read_user_file

MAPS = ("auto", "sequential")


@dataclass(frozen=True)
class BackbonePlacement:
    """`load_in`: 4bit (NF4, double quantisation) or 8bit (LLM.int8), None: as saved. `device_map`:
    auto (as evenly as there is room), sequential (one device after the other), a JSON file of
    {module: device}; None: one device."""

    load_in: str | None = None
    device_map: str | None = None

    def __bool__(self) -> bool:
        return self.load_in is not None or self.device_map is not None

    @property
    def spreads(self) -> bool:
        """Whether whole weights are loaded beside the devices and spread afterwards."""
        return self.device_map is not None and self.load_in is None

    def arguments(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """What transformers needs to load a backbone quantised; {} where it is not.

        Raises:
            UsageError: without bitsandbytes, or where it cannot work.
        """
        if self.load_in is None:
            return {}
        check_bitsandbytes(self.load_in, device)
        where: Any = {"": torch.cuda.current_device() if device.type == "cuda" else str(device)}
        if self.device_map is not None:
            where = self.device_map if self.device_map in MAPS else read_map(self.device_map)
        if isinstance(where, dict) and set(where.values()) & {"cpu", "disk"} - {str(device)}:
            message = f"--device-map {self.device_map}: quantised layers stay on the GPUs"
            raise UsageError(message, "name GPUs alone, or omit --load-in")
        from transformers import BitsAndBytesConfig

        if self.load_in == "8bit":
            settings: Any = BitsAndBytesConfig(load_in_8bit=True)
        else:
            settings = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        return {"quantization_config": settings, "device_map": where}


WHOLE = BackbonePlacement()


def check_bitsandbytes(load_in: str, device: torch.device) -> None:
    """Raise UsageError where bitsandbytes is missing or cannot work on the device."""
    if find_spec("bitsandbytes") is None:
        message = f"--load-in {load_in} needs bitsandbytes, which is not here"
        raise UsageError(message, install_command("quant"))
    for name in ("bitsandbytes", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except (ImportError, OSError, RuntimeError) as error:
        raise cannot(load_in, error) from error
    device_types = set(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))
    if device.type not in device_types:
        raise cannot(load_in, f"this version computes on {', '.join(sorted(device_types))} only")


def cannot(load_in: str, reason: object) -> UsageError:
    """The error where bitsandbytes is there and does not work."""
    return UsageError(
        f"--load-in {load_in}: bitsandbytes does not work here: {first_line(reason)}",
        f"omit --load-in, use --device cuda, or bring it up to date: {install_command('quant')}",
    )


def read_map(file: str) -> dict[str, int | str]:
    """A JSON file of {module: device}; a device is a GPU's number, "cpu" or "disk".

    Raises:
        UsageError: where it is none.
    """
    hint = f"--device-map takes {', '.join(MAPS)}, or a JSON file of module names and devices"
    try:
        device_of = parse(read_user_file(Path(file)))
    except OSError as error:
        raise UsageError(f"--device-map {file}: {error.strerror}", hint) from error
    except ValueError as error:
        raise UsageError(f"--device-map {file}: not JSON: {error}", hint) from error
    if not isinstance(device_of, dict) or not device_of:
        raise UsageError(f"--device-map {file}: not an object of modules and devices", hint)
    for module, device in device_of.items():
        if type(device) is not int and device not in ("cpu", "disk"):
            message = f"--device-map {file}: {module!r} is on {device!r}"
            raise UsageError(message, 'a device is a GPU\'s number, "cpu" or "disk"')
    return device_of


def spread(model: ClaraModel, device_map: str) -> None:
    """Put a model that lies in main memory on the devices of a map; what is on the CPU beside a
    GPU, or on disk, comes to the first device when it is needed.

    Raises:
        UsageError: for a map that does not cover the backbone, or names a device that is not here.
    """
    from accelerate import dispatch_model
    from accelerate.utils import check_device_map

    causal_lm = model.causal_lm
    places = make_map(causal_lm, device_map)
    count = torch.cuda.device_count()
    for module, place in places.items():
        if type(place) is int and not 0 <= place < count:
            message = f"--device-map: {module!r} is on GPU {place}, there are {count}"
            raise UsageError(message, "name devices that are here")
    try:
        check_device_map(causal_lm, places)
    except ValueError as error:
        message = f"--device-map {device_map}: {str(error).strip()}"
        raise UsageError(message, "name every module of the backbone, or use auto") from error
    folder = tempfile.TemporaryDirectory(prefix="clara-offload-")
    weakref.finalize(model, folder.cleanup)
    dispatch_model(causal_lm, places, offload_dir=folder.name)
    first = next((p for p in places.values() if type(p) is int), "cpu")
    with torch.no_grad():
        for tensor in (model.memory_MD, model.markers_2D):
            tensor.data = tensor.data.to(first)


def make_map(causal_lm: nn.Module, device_map: str) -> dict[str, int | str]:
    """{module: device}: as given, or as there is room."""
    if device_map not in MAPS:
        return read_map(device_map)
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole: Any = getattr(causal_lm, "_no_split_modules", None)
    whole = list(whole) if whole else None
    limit = None
    if device_map == "auto":
        limit = get_balanced_memory(causal_lm, no_split_module_classes=whole)
    placed = infer_auto_device_map(causal_lm, max_memory=limit, no_split_module_classes=whole)
    return dict(placed)


def refuse_offloaded(model: ClaraModel) -> None:
    """Raise UsageError where a role's weights are not on a device, so that they cannot train."""
    parts = [p for role in model.roles for p in model.role_parameters(role).values()]
    away = sum(parameter.is_meta for parameter in parts)
    if away:
        raise UsageError(
            f"--device-map leaves {away} of {len(parts)} adapter weights off the GPUs",
            "training needs every layer on one: --load-in 4bit, or --set fsdp=true with --nproc",
        )
