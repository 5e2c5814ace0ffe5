"""The ``--config`` flag: a recipe, and fields of it that the command line sets.

``configs/common.py`` lists every field. Two of them are dictionaries with free names:
``optimizer.options`` and ``evals``.
"""

import copy
import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from effnetv2_jax.runtime.cli import unreadable_config
from effnetv2_jax.runtime.errors import UsageError, near_names, unknown_name

# Old names of fields. A workdir may still have them; a recipe or the command line may not.
RENAMED = {"optimizer.decay": "optimizer.learning_rate_schedule"}
# Fields that old workdirs lack, with the value that means what their runs did.
ADDED: dict[str, Any] = {
    "optimizer.options": {},
    "evals": {"eval": {}},
    "data.exif_orientation": False,
    "data.sampler": "shuffled",
    "class_weights": None,
    "init_architecture": None,
}
# Dictionaries whose entries ``config.build`` checks.
FREE = ("optimizer.options", "evals")


class _Parser(flags.ArgumentParser):
    """Loads a recipe, and looks at the names of the fields that the command line sets.

    It makes room for evaluations that only the command line names, and refuses unknown fields:
    ml_collections would not name the near ones.
    """

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def flag_type(self) -> str:
        return self._parser.flag_type()

    def parse(self, path: str) -> Any:
        config = self._parser.parse(path)
        if not isinstance(config, ml_collections.ConfigDict):
            return config
        found = (re.match(r"--?config\.([^=]*)", argument) for argument in sys.argv)
        names = [match[1] for match in found if match]
        for name in names:
            if not re.fullmatch(r"\w+(\.\w+)*", name):
                raise UsageError(
                    f"config field {name!r} must be words of letters, digits and underscores with "
                    "dots between; a tuple is set as a whole, as in --config.a.b=(1,2)"
                )
        fields = flatten(config.to_dict())
        sections = {x.rpartition(".")[0] for x in fields}
        refuse_unknown((x for x in names if x not in sections), fields)
        for name in names:
            section, _, rest = name.partition(".")
            evaluation = rest.partition(".")[0]
            # Without this, --config.evals.NAME.FIELD=VALUE would be an unknown field.
            if section == "evals" and "." in rest and evaluation not in config.evals:
                config.evals[evaluation] = ml_collections.ConfigDict()
        return config


def define_flag() -> flags.FlagHolder:
    """Defines ``--config``; pass its value to ``checked``."""
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "Recipe, such as configs/digits.py. --config.FIELD=VALUE sets one of its fields; "
        "configs/common.py lists them.",
        lock_config=False,
        accept_new_attributes=True,
    )
    flags.mark_flag_as_required("config")
    # So that --help lists it with the program's own flags.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["config"])
    flags.FLAGS["config"].parser = _Parser(flags.FLAGS["config"].parser)
    return holder


def checked(config: Any) -> ml_collections.ConfigDict:
    """Returns the config of the ``--config`` flag.

    Raises:
        UsageError: If its file cannot be read, or for a field that ``configs/common.py`` lacks.
    """
    try:
        weights = config.to_dict().get("class_weights")
    except OSError as error:
        raise UsageError(unreadable_config(error)) from error
    if isinstance(weights, Mapping):
        # Names of classes are no names of fields.
        config.class_weights = [[str(name), weight] for name, weight in weights.items()]
    try:
        common = importlib.import_module("configs.common")
    except ImportError as error:
        raise UsageError(
            "configs/common.py, which lists the fields of a recipe, cannot be imported: run from a "
            "clone of the repository"
        ) from error
    refuse_unknown(flatten(config.to_dict()), flatten(common.get_config().to_dict()))
    return config


def refuse_unknown(fields: Iterable[str], allowed: Iterable[str]) -> None:
    """Raises UsageError for a field that is not allowed, naming the near ones.

    Args:
        fields: Names such as ``optimizer.name``.
        allowed: The names of all fields. Fields below one in ``FREE`` are allowed as well.
    """
    allowed = set(allowed)
    for name in fields:
        if name in RENAMED:
            raise UsageError(f"config field {name!r} is now called {RENAMED[name]!r}")
        if name not in allowed and not any(f"{name}.".startswith(f"{free}.") for free in FREE):
            raise _unknown_field(name, allowed)


def _unknown_field(name: str, allowed: Iterable[str]) -> UsageError:
    """Returns the error for a field that is not there: the near ones, and those of its section."""
    section, _, last = name.rpartition(".")
    by_last: dict[str, list[str]] = {}
    for x in sorted(allowed, key=lambda x: x.rpartition(".")[0] != section):
        by_last.setdefault(x.rpartition(".")[2], []).append(x)
    near = [x for match in near_names(last, by_last) for x in by_last[match]]
    # All of more than a hundred fields would be no help.
    beside = {x for x in allowed if x.rpartition(".")[0] == section}
    sections = {x.rpartition(".")[0] for x in allowed if "." in x}
    if not beside:
        return unknown_name("section of the config", section, sections)
    return unknown_name("config field", name, beside, near)


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of an old workdir with the field names and fields of today.

    >>> upgraded({"optimizer": {"decay": "cosine"}})["optimizer"]
    {'learning_rate_schedule': 'cosine', 'options': {}}
    """
    renewed: dict[str, Any] = copy.deepcopy(dict(config))
    for old, new in RENAMED.items():
        section, name = _section(renewed, old)
        if name in section:
            target, new_name = _section(renewed, new)
            target[new_name] = section.pop(name)
    for field, value in ADDED.items():
        section, name = _section(renewed, field)
        section.setdefault(name, copy.deepcopy(value))
    return renewed


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested dictionary with one level; tuples become lists, as JSON makes of them.

    >>> flatten({"a": {"b": (1, 2), "c": {}}, "d": 3})
    {'a.b': [1, 2], 'a.c': {}, 'd': 3}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dictionary of a flat one; empty dictionaries are left out.

    >>> unflatten({"a.b": [1, 2], "a.c": {}, "d": 3})
    {'a': {'b': [1, 2]}, 'd': 3}
    """
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        if value != {}:
            section, name = _section(tree, path)
            section[name] = value
    return tree


def _section(config: dict[str, Any], field: str) -> tuple[dict[str, Any], str]:
    *sections, name = field.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    return config, name
