"""What `./run doctor` looks at: the machine, the installation, services, and which config fits."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it will do, and if not what to do."""

    subject: str
    status: Status
    """fail: something that is needed is broken; warn: good to know before it costs money."""
    text: str
    advice: str = ""
    details: tuple[str, ...] = ()
    """Further lines."""
