"""LocalNorm: group statistics and group affines, for image classifiers that stay right under noise.

A name is loaded when it is first asked for, so that code which reads tables or draws figures does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from localnorm._version import __version__

if TYPE_CHECKING:
    from localnorm.choose import choose_prior
    from localnorm.convert import (
        convert_state_dict,
        convert_to_batchnorm,
        convert_to_localnorm,
        param_groups,
    )
    from localnorm.eval_mode import set_eval_mode
    from localnorm.layers import LocalNorm1d, LocalNorm2d, LocalNorm3d, LocalNormAct2d
    from localnorm.modes import use_mode
    from localnorm.prediction import Predictor, majority_vote, predict
    from localnorm.published_networks import load_published, published
    from localnorm.training_statistics import estimate_statistics, learn_spread

__all__ = [
    "LocalNorm1d",
    "LocalNorm2d",
    "LocalNorm3d",
    "LocalNormAct2d",
    "Predictor",
    "__version__",
    "choose_prior",
    "convert_state_dict",
    "convert_to_batchnorm",
    "convert_to_localnorm",
    "estimate_statistics",
    "learn_spread",
    "load_published",
    "majority_vote",
    "param_groups",
    "predict",
    "published",
    "set_eval_mode",
    "use_mode",
]

# public name -> the module that defines it
_HOMES = {
    "choose_prior": "localnorm.choose",
    **dict.fromkeys(
        ("convert_state_dict", "convert_to_batchnorm", "convert_to_localnorm", "param_groups"),
        "localnorm.convert",
    ),
    "set_eval_mode": "localnorm.eval_mode",
    **dict.fromkeys(("LocalNorm1d", "LocalNorm2d", "LocalNorm3d", "LocalNormAct2d"), "localnorm.layers"),
    "use_mode": "localnorm.modes",
    **dict.fromkeys(("Predictor", "majority_vote", "predict"), "localnorm.prediction"),
    **dict.fromkeys(("load_published", "published"), "localnorm.published_networks"),
    **dict.fromkeys(("estimate_statistics", "learn_spread"), "localnorm.training_statistics"),
}
_MODULES = ("data", "models", "noise")  # localnorm.noise.apply, without an import of its own


def __getattr__(name: str):
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module 'localnorm' has no attribute {name!r}; it has {', '.join(__all__)}")
    try:
        module = import_module(_HOMES.get(name, f"localnorm.{name}"))
    except ModuleNotFoundError as error:
        if name in _MODULES:
            raise _lacks(name, error) from error
        return _lacking(name, error)
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def _lacks(name: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    text = (
        f"localnorm.{name} needs {error.name}, and `pip install .` brings torch alone; run: pip install '.[pipeline]'"
    )
    return ModuleNotFoundError(text, name=error.name)


def _lacking(name: str, error: ModuleNotFoundError):
    """What stands for a function that cannot be loaded here, so that `from localnorm import *` and `help` can."""

    def function(*args, **kwargs):
        raise _lacks(name, error) from error

    function.__name__ = function.__qualname__ = name
    function.__doc__ = str(_lacks(name, error))
    return function


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
