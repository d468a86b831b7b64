"""Scores on benchmark tasks, by lm-eval: tasks it ships, and task files of one's own."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jointquant.errors import InputError, require
from jointquant.hub.failures import brief
from jointquant.progress import Progress, Silent, Stage
from jointquant.trust.files import read_text
from jointquant.trust.strict_yaml import LIMIT

Scores = dict[str, dict[str, float]]
"""By task: value by metric, as lm-eval names it (``acc``, ``acc_stderr``, ``exact_match,strict-match`` …)."""


class TaskSet:
    """The tasks to evaluate, loaded: whatever is wrong with them shows before a model is.

    Args:
        names: tasks, groups or tags of lm-eval, or task files (.yaml).

    Raises:
        InputError: lm-eval is not installed, an unknown task, a file that is no task, data that cannot be had.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        require(find_spec("lm_eval") is not None, "tasks need lm-eval: pip install 'jointquant[eval]'")
        require(bool(names) and all(names), "no task is named: expected the names of lm-eval tasks, or task files")
        with _quiet():
            self._loaded = _load(names)

    def scores(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seqlen: int,
        num_fewshot: int | None = None,
        limit: int | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """What a model scores on every task, and on every group as a whole.

        Args:
            model: in memory, on its device.
            tokenizer: the model's.
            seqlen: the longest request in tokens; longer ones lose their beginning.
            num_fewshot: solved examples before each question; None: what each task says.
            limit: use only so many questions of each task.
            progress: where progress is shown; None: nowhere.
        """
        from lm_eval import simple_evaluate

        with _quiet():
            wrapped = _language_model(model, copy.deepcopy(tokenizer), seqlen, progress or Silent())
            found = simple_evaluate(
                wrapped, tasks=self._loaded, num_fewshot=num_fewshot, limit=limit, log_samples=False
            )
        return {name: _numbers(values) for name, values in found["results"].items() if _numbers(values)}


def _load(names: tuple[str, ...]) -> list[Any]:
    """lm-eval's own task and group objects."""
    from lm_eval.tasks import TaskManager

    files = {name: _definition(Path(name)) for name in names if Path(name).suffix in (".yaml", ".yml")}
    own = {name: _own_name(name, data) for name, data in files.items()}
    shipped = len(files) < len(names) or any("group" in data for data in files.values())
    folders = sorted({str(Path(name).resolve().parent) for name in files})
    manager = TaskManager(include_path=folders or None, include_defaults=shipped)
    for name in names:
        require(
            own.get(name, name) in manager.all_tasks,
            f"unknown task {name!r}: expected a task of lm-eval (lm-eval ls tasks), or an existing task file (.yaml)",
        )
    try:
        loaded = manager.load([own.get(name, name) for name in names])
    except Exception as error:  # a task is code and data of others: anything can be wrong with it
        raise InputError(f"tasks {','.join(names)} cannot be loaded: {brief(error)}") from None
    groups = loaded.get("groups", {})
    children = {child for members in loaded.get("group_map", {}).values() for child in members}
    grouped = {task.task_name for group in groups.values() for task in group.get_all_tasks()}
    return [
        *(group for name, group in groups.items() if name not in children),
        *(task for name, task in loaded["tasks"].items() if name not in grouped),
    ]


class _TaskFile(yaml.SafeLoader):
    """Reads a task file without running the functions that it names (``!function module.name``)."""


_TaskFile.add_multi_constructor("!", lambda loader, suffix, node: None)


def _definition(path: Path) -> dict[str, Any]:
    """What a task file says. Raises InputError when there is none, or it is not a mapping in YAML."""
    require(os.path.exists(path), f"no such task file: {str(path)[:200]} (expected a task of lm-eval in YAML)")
    text = read_text(path, LIMIT)
    try:
        data = yaml.load(text, _TaskFile)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"task file {path}: not readable as YAML ({brief(error)})") from None
    require(isinstance(data, dict), f"task file {path}: expected a mapping, got {type(data).__name__}")
    return dict(data)


def _own_name(path: str, data: dict[str, Any]) -> str:
    """The task or group that a task file defines."""
    name = data.get("group", data.get("task"))
    require(isinstance(name, str) and bool(name), f"task file {path}: expected its name under 'task' (or 'group')")
    return str(name)


def _language_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seqlen: int, progress: Progress) -> Any:
    """A model as lm-eval sees it."""
    from lm_eval.api.model import CacheHook
    from lm_eval.models.huggingface import HFLM

    class Hook(CacheHook):
        """Told of every request that is done."""

        def __init__(self, stage: Stage) -> None:
            super().__init__(None)
            self.stage = stage

        def add_partial(self, attr: str, req: Any, res: Any) -> None:
            self.stage.advance()

    class LanguageModel(HFLM):
        """Shows progress in our way, and asks no hub about the model."""

        def _watched(self, kind: str, requests: list[Any]) -> Any:
            with progress.stage(f"tasks, {kind.replace('_', ' ')}", len(requests)) as stage:
                self.set_cache_hook(Hook(stage))
                return getattr(super(), kind)(requests, disable_tqdm=True)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            return self._watched("loglikelihood", requests)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            return self._watched("loglikelihood_rolling", requests)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            return self._watched("generate_until", requests)

        def get_model_info(self) -> dict[str, Any]:
            return {}

    return LanguageModel(
        pretrained=model,
        backend="causal",
        tokenizer=tokenizer,
        max_length=seqlen,
        batch_size=max(1, 4096 // seqlen),
        truncation=True,
    )


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The metrics among a task's results; the filter is named only where there is one."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in values.items()
        if "," in key and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's remarks on how it is called are not for our users."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
