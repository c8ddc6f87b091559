"""The settings of an experiment, without torch: the blocks train, answers and ablations of params.yaml, checked, and what they ask for.

A mistake is refused where a block is read, before any image is. One file per block: what changes the settings of answers makes no
training stale.
"""

from localnorm.settings.ablations import (
    FINE_TUNING,
    FIXED_BATCH,
    FIXED_SIZE,
    FULL_LENGTH,
    NETWORK,
    TRAINED_SIZES,
    AblationConfig,
)
from localnorm.settings.answers import DOMAINS, AnswersConfig, Streams, candidates, conditions, conditions_of
from localnorm.settings.controls import CONTROLS, ControlsConfig, FineTuningConfig
from localnorm.settings.study import StudyConfig
from localnorm.settings.train import MODELS, Shrinkage, TrainConfig, check_augmentation

__all__ = [
    "CONTROLS",
    "DOMAINS",
    "FINE_TUNING",
    "FIXED_BATCH",
    "FIXED_SIZE",
    "FULL_LENGTH",
    "MODELS",
    "NETWORK",
    "TRAINED_SIZES",
    "AblationConfig",
    "AnswersConfig",
    "ControlsConfig",
    "FineTuningConfig",
    "Shrinkage",
    "Streams",
    "StudyConfig",
    "TrainConfig",
    "candidates",
    "check_augmentation",
    "conditions",
    "conditions_of",
]
