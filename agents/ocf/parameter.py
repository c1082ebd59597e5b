"""Typed parameters of an agent: they convert, check and describe themselves.

A parameter is a class attribute; reading it on an agent yields the converted value of OCF_RESKEY_<name>, or the default
(the manager never fills in defaults). Conversion happens on first use, so that `stop` cannot fail over a parameter it
does not need. An empty string counts as "not set", as in the shell agents.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from agents.ocf.agent import Agent

TRUE_WORDS = frozenset(("yes", "true", "1", "on", "ja"))
FALSE_WORDS = frozenset(("no", "false", "0", "off"))
UNITS_MS = {"ms": 1, "msec": 1, "s": 1000, "sec": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "hr": 3_600_000}


class Parameter:
    """One parameter. `text` is its one-line meaning, `more` what the long description adds.

    default      in the notation of the configuration; "" = none
    required     no default is possible; a resource without it can run nowhere (exit 6)
    unique       no two resources of the type may share the value; with `unique_group`, the combination of its members
    reloadable   `reload-agent` can take a new value over without interruption
    private      the manager hides the value in logs and digests (passwords)
    """

    content_type = "string"
    name = ""

    def __init__(
        self,
        text: str,
        more: str = "",
        *,
        default: str = "",
        required: bool = False,
        unique: bool = False,
        unique_group: str = "",
        reloadable: bool = False,
        private: bool = False,
    ) -> None:
        self.text = text
        self.more = more
        self.default = default
        self.required = required
        self.unique = unique
        self.unique_group = unique_group
        self.reloadable = reloadable
        self.private = private

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Agent | None, owner: type | None = None) -> Any:
        return self if instance is None else instance.value_of(self)

    def raw(self, environment: Mapping[str, str]) -> str:
        """The configured text, else the default, else ""."""
        return environment.get("OCF_RESKEY_" + self.name, "").strip() or self.default

    def convert(self, text: str) -> Any:
        """The value of `text`. Raises ValueError whose message continues "parameter x …" ("must be …")."""
        raise NotImplementedError

    def absent(self) -> Any:
        """The value when nothing is configured and there is no default."""
        return self.convert("")

    def constraint(self) -> str:
        """One sentence about the values accepted, for the long description."""
        raise NotImplementedError


class Text(Parameter):
    """Any string, stripped of surrounding blanks."""

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> str: ...

    def convert(self, text: str) -> str:
        if "\n" in text or "\0" in text:
            raise ValueError("must be one line")
        return text

    def constraint(self) -> str:
        return "Text."


class Words(Parameter):
    """A list separated by blanks or commas."""

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> tuple[str, ...]: ...

    def convert(self, text: str) -> tuple[str, ...]:
        return tuple(text.replace(",", " ").split())

    def constraint(self) -> str:
        return "List, separated by blanks or commas."


class Integer(Parameter):
    """A whole number. A default is mandatory unless the parameter is required."""

    content_type = "integer"

    def __init__(
        self,
        text: str,
        more: str = "",
        *,
        default: int | None = None,
        minimum: int | None = None,
        maximum: int | None = None,
        required: bool = False,
        unique: bool = False,
        unique_group: str = "",
        reloadable: bool = False,
    ) -> None:
        assert required or default is not None, "an integer needs a default or must be required"
        super().__init__(
            text,
            more,
            default="" if default is None else str(default),
            required=required,
            unique=unique,
            unique_group=unique_group,
            reloadable=reloadable,
        )
        self.minimum = minimum
        self.maximum = maximum

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> int: ...

    def convert(self, text: str) -> int:
        digits = text[1:] if text[:1] in ("-", "+") else text
        if not (digits.isascii() and digits.isdigit()):
            raise ValueError("must be a whole number")
        value = int(text)
        if (self.minimum is not None and value < self.minimum) or (self.maximum is not None and value > self.maximum):
            raise ValueError(f"must be {self._range()}")
        return value

    def _range(self) -> str:
        if self.minimum is None and self.maximum is None:
            return "a whole number"
        if self.maximum is None:
            return f"{self.minimum} or more"
        if self.minimum is None:
            return f"{self.maximum} or less"
        return f"{self.minimum} to {self.maximum}"

    def constraint(self) -> str:
        return f"Whole number, {self._range()}." if self._range() != "a whole number" else "Whole number."


class Boolean(Parameter):
    """yes/no, true/false, on/off, 1/0 in any case; everything else is refused."""

    content_type = "boolean"

    def __init__(self, text: str, more: str = "", *, default: bool, reloadable: bool = False) -> None:
        super().__init__(text, more, default="true" if default else "false", reloadable=reloadable)

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> bool: ...

    def convert(self, text: str) -> bool:
        word = text.lower()
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
        raise ValueError("must be yes or no")

    def constraint(self) -> str:
        return "yes or no."


class Choice(Parameter):
    """One of a few words, in any case; the value is the word in lower case."""

    def __init__(
        self, text: str, more: str = "", *, options: tuple[str, ...], default: str, reloadable: bool = False
    ) -> None:
        assert default in options
        super().__init__(text, more, default=default, reloadable=reloadable)
        self.options = options

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> str: ...

    def convert(self, text: str) -> str:
        word = text.lower()
        if word not in self.options:
            raise ValueError(f"must be one of: {', '.join(self.options)}")
        return word

    def constraint(self) -> str:
        return f"One of: {', '.join(self.options)}."


class _Duration(Parameter):
    """Without a default, a duration that is not configured reads as 0 (the agent derives one)."""

    content_type = "time"
    bare_unit = ""

    def __init__(
        self,
        text: str,
        more: str = "",
        *,
        default: str = "",
        minimum: str = "0",
        maximum: str = "1h",
        reloadable: bool = False,
    ) -> None:
        super().__init__(text, more, default=default, reloadable=reloadable)
        self.minimum_ms = duration_ms(minimum, self.bare_unit)
        self.maximum_ms = duration_ms(maximum, self.bare_unit)
        self.bounds = (minimum, maximum)

    def absent(self) -> float:
        return 0

    def bounded_ms(self, text: str) -> int:
        value = duration_ms(text, self.bare_unit)
        if not self.minimum_ms <= value <= self.maximum_ms:
            raise ValueError(f"must be {self.bounds[0]} to {self.bounds[1]}")
        return value

    def constraint(self) -> str:
        long = {"s": "seconds", "ms": "milliseconds"}[self.bare_unit]
        return f"Duration {self.bounds[0]} to {self.bounds[1]}: 500ms, 30s, 2m, PT30S; a bare number is {long}."


class Seconds(_Duration):
    """A duration; a bare number is seconds. The value is a float in seconds."""

    bare_unit = "s"

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> float: ...

    def convert(self, text: str) -> float:
        return self.bounded_ms(text) / 1000


class Milliseconds(_Duration):
    """A duration; a bare number is milliseconds. The value is an int in milliseconds."""

    bare_unit = "ms"

    if TYPE_CHECKING:

        def __get__(self, instance: Agent | None, owner: type | None = None) -> int: ...

    def convert(self, text: str) -> int:
        return self.bounded_ms(text)


def duration_ms(text: str, bare_unit: str) -> int:
    """Milliseconds of "30", "1.5s", "500ms", "2 min", "PT1M30S"; a number without unit counts in `bare_unit`.

    Raises ValueError for anything else.
    """
    word = text.strip().lower().removeprefix("p").removeprefix("t") if text.isascii() else ""
    iso = text.strip().lower().startswith("p")
    total = 0.0
    units: list[str] = []
    while word:
        end = 0
        while end < len(word) and (word[end].isdigit() or word[end] == "."):
            end += 1
        stop = end
        while stop < len(word) and (word[stop].isalpha() or word[stop] == " "):
            stop += 1
        unit = word[end:stop].strip() or ("" if iso else bare_unit)
        number = word[:end]
        if unit not in UNITS_MS or number.count(".") > 1 or not number.strip("."):
            break
        total += float(number) * UNITS_MS[unit]
        units.append(unit)
        word = word[stop:]
    # "90" and "1.5s" are one part; only ISO 8601 strings together hours, minutes and seconds
    if word or not units or (len(units) > 1 and not iso) or total == float("inf"):
        raise ValueError("must be a duration such as 500ms, 30s, 2m or PT30S")
    return round(total)
