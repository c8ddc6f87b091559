"""Training: the loop, its steps, optimizers and schedules, checkpoints, and the record of a run."""

from localnorm.settings import TrainConfig
from localnorm.train.checkpoints import save_run
from localnorm.train.loop import fit, make_fabric
from localnorm.train.optimizers import learning_rate
from localnorm.train.record import TrainedRun

__all__ = ["TrainConfig", "TrainedRun", "fit", "learning_rate", "make_fabric", "save_run"]
