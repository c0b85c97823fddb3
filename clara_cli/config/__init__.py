"""One frozen dataclass per command, every field typed, with its unit and doc (see fields.py).

Knows nothing of terminals or tensors.
"""

from clara_cli.config.ask import AskConfig
from clara_cli.config.bench import BenchConfig
from clara_cli.config.common import Common
from clara_cli.config.compress import CompressConfig
from clara_cli.config.documents import DocumentOptions
from clara_cli.config.index import IndexConfig
from clara_cli.config.learn import LearnConfig, PretrainConfig, TrainConfig
from clara_cli.config.synth import SynthConfig

__all__ = [
    "AskConfig",
    "BenchConfig",
    "Common",
    "CompressConfig",
    "DocumentOptions",
    "IndexConfig",
    "LearnConfig",
    "PretrainConfig",
    "SynthConfig",
    "TrainConfig",
]
