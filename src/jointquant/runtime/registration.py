"""Why artifacts load through transformers after ``import jointquant``, which itself imports no transformers.

torch and transformers take seconds to import, and a command line that only prints its help needs neither. So a finder
of modules waits for the tables in which transformers looks model types and quantization methods up. Once one of them is
imported, it gets entries of ours, and an entry fetches ``runtime.integration`` when transformers first uses it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # importlib.abc brings half the standard library


def register_when_imported() -> None:
    """Put our entries into transformers' tables, now where they are imported already, else when they are."""
    for name, register in ENTRIES.items():
        if name in sys.modules:
            register()
    sys.meta_path.insert(0, Waiting(ENTRIES))


class Waiting:
    """Finds some modules as the other finders do, and does something each time one of them has been executed."""

    def __init__(self, actions: Mapping[str, Callable[[], None]]) -> None:
        self.actions = actions

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What another finder found, with a loader that acts afterwards; None for other modules."""
        if fullname not in self.actions:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = Then(spec.loader, self.actions[fullname])
        return spec


class Then(Loader):
    """A loader that does something once it has executed its module."""

    def __init__(self, loader: Loader, action: Callable[[], None]) -> None:
        self.loader = loader
        self.action = action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the loader does, and then the action."""
        self.loader.exec_module(module)
        self.action()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def _register_model_types() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    from jointquant.models.registry import ARCHITECTURES, artifact_type

    for model_type in map(artifact_type, ARCHITECTURES):
        if model_type not in CONFIG_MAPPING:
            AutoConfig.register(model_type, _configuration_of(model_type))


def _configuration_of(model_type: str) -> type:
    """A stand-in for the class of an artifact's configuration: what it is asked for, the class gives."""

    def real() -> Any:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        import_module("jointquant.runtime.integration")  # puts the class where this stand-in was
        return CONFIG_MAPPING[model_type]

    class Configuration:
        def __new__(cls, *args: Any, **options: Any) -> Any:
            return real()(*args, **options)

        @classmethod
        def from_dict(cls, *args: Any, **options: Any) -> Any:
            return real().from_dict(*args, **options)

    return Configuration


def _register_quantization_method() -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, register_quantization_config
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from jointquant.runtime.artifact_facts import QUANT_METHOD

    if QUANT_METHOD in AUTO_QUANTIZATION_CONFIG_MAPPING:
        return

    @register_quantization_config(QUANT_METHOD)
    class Quantization(QuantizationConfigMixin):
        """A stand-in, as those of configurations are."""

        @classmethod
        def from_dict(cls, *args: Any, **options: Any) -> Any:
            import_module("jointquant.runtime.integration")
            return AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD].from_dict(*args, **options)


ENTRIES: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_model_types,
    "transformers.quantizers.auto": _register_quantization_method,
}
"""By transformers' module: what is put into the table that it holds."""
