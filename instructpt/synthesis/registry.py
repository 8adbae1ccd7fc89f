"""Named plug-ins: what ships here plus what other distributions offer through an entry-point group."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

from instructpt.errors import ConfigError

T = TypeVar("T")


def installed(group: str) -> list[EntryPoint]:
    """The entry points other distributions installed under ``group``, in order of name."""
    return sorted(entry_points(group=group), key=lambda point: (point.name, point.value))


class Registry(Generic[T]):
    """Names to objects. What ships here cannot be replaced by a plug-in of the same name.

    Args:
        noun: What an entry is called in messages, such as ``profile``.
        group: The entry-point group, such as ``instructpt.profiles``.
        discover: Gives the entry points of a group; replaced in tests.
    """

    def __init__(self, noun: str, group: str, discover: Callable[[str], list[EntryPoint]] = installed) -> None:
        self._noun = noun
        self._group = group
        self._discover = discover
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> None:
        """Add an entry.

        Raises:
            ConfigError: The name is taken.
        """
        if name in self._entries:
            raise ConfigError(f"a {self._noun} of this name is registered already", field=self._noun, value=name)
        self._entries[name] = entry

    def names(self) -> list[str]:
        """Every known name, sorted."""
        return sorted({*self._entries, *(point.name for point in self._discover(self._group))})

    def get(self, name: str) -> T:
        """The entry called ``name``.

        Raises:
            ConfigError: The name is unknown, two plug-ins claim it, or the plug-in cannot be imported.
        """
        if name in self._entries:
            return self._entries[name]
        points = [point for point in self._discover(self._group) if point.name == name]
        if not points:
            known = ", ".join(self.names())
            raise ConfigError(f"unknown {self._noun}", field=self._noun, value=name, fix=f"known: {known}")
        if len({point.value for point in points}) > 1:
            claims = ", ".join(point.value for point in points)
            raise ConfigError(
                f"two plug-ins claim this name: {claims}", field=self._noun, value=name, fix="uninstall one of them"
            )
        try:
            return cast("T", points[0].load())
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"the plug-in {points[0].value} cannot be imported: {error}",
                field=self._noun,
                value=name,
                fix=f"repair or uninstall the distribution that offers it in the group {self._group}",
            ) from error
