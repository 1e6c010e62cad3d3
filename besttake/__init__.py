"""besttake: post-train video diffusion models on preferences.

    import besttake as bt

    run = bt.train("onlinevpo-tiny", steps=20)
    print(run.summary["before"], run.summary["after"])

The names below are read when they are first used, so that `import besttake` takes no time.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from besttake.api import (
        Policy,
        evaluate,
        generate,
        load_model,
        load_reward,
        plan,
        recipes,
        report,
        score,
        train,
    )

__version__ = "0.1.0"

__all__ = [
    "Policy",
    "evaluate",
    "generate",
    "load_model",
    "load_reward",
    "plan",
    "recipes",
    "report",
    "score",
    "train",
]


class _Package(ModuleType):
    """This package; two of its functions, `plan` and `report`, have the names of folders in it.

    `import besttake.plan.table` would put the folder in the place of the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in __all__ or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'besttake' has no attribute {name!r}")
    from besttake.runtime.console import quiet_libraries

    quiet_libraries()
    from besttake import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


sys.modules[__name__].__class__ = _Package
