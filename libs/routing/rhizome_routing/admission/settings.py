"""Classes, bounds and times of the queue."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


class PriorityClass(enum.IntEnum):
    """Which requests go first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2

    @classmethod
    def of(cls, name: str) -> PriorityClass:
        """The class that a caller names, NORMAL where it names none.

        Raises:
            ValueError: there is no such class.
        """
        try:
            return _NAMES[name.strip().lower()]
        except KeyError:
            raise ValueError(f"the priority class must be one of {', '.join(filter(None, _NAMES))}") from None


_NAMES: Final = {
    "": PriorityClass.NORMAL,
    "high": PriorityClass.HIGH,
    "normal": PriorityClass.NORMAL,
    "low": PriorityClass.LOW,
    "batch": PriorityClass.LOW,
}


@dataclass(frozen=True, slots=True)
class ClassRules:
    """How long and how many requests of one class wait.

    Attributes:
        max_waiting: requests; more are refused.
        max_wait_s: seconds.
        share: of all tokens that are admitted while it waits, what it gets in spite of higher classes.
    """

    max_waiting: int
    max_wait_s: float
    share: float = 0.0


def _default_classes() -> Mapping[PriorityClass, ClassRules]:
    return {
        PriorityClass.HIGH: ClassRules(1024, 30.0),
        PriorityClass.NORMAL: ClassRules(4096, 60.0, 0.2),
        PriorityClass.LOW: ClassRules(8192, 600.0, 0.05),
    }


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """What bounds the queue of one group of backends.

    Attributes:
        classes: rules of each class; together their bounds are the system's.
        tenant_requests: of one tenant and class that wait.
        tenant_tokens: of one tenant and class that wait; a request alone may have more.

    Raises:
        ValueError: a class has no rules, shares leave nothing, or a bound is not positive.
    """

    classes: Mapping[PriorityClass, ClassRules] = field(default_factory=_default_classes)
    tenant_requests: int = 512
    tenant_tokens: int = 4_000_000

    def __post_init__(self) -> None:
        missing = [one.name.lower() for one in PriorityClass if one not in self.classes]
        if missing:
            raise ValueError(f"rules are missing for the classes {', '.join(missing)}")
        rules = self.classes.values()
        if min(one.share for one in rules) < 0 or sum(one.share for one in rules) >= 1:
            raise ValueError("the shares of the classes must be at least 0 and below 1 together")
        bounds = [self.tenant_requests, self.tenant_tokens, *(one.max_waiting for one in rules)]
        if min(bounds) < 1 or min(one.max_wait_s for one in rules) <= 0:
            raise ValueError("bounds and times of the queue must be positive")
