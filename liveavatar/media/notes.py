"""Notes: findings that do not stop the work but change how good the result can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Field = Literal["portrait", "speech", "prompt", "tier"]


@dataclass(frozen=True)
class Note:
    """One finding about an input that its maker should know.

    Attributes:
        field: which input or choice it is about.
        code: stable slug such as "jpeg_artefacts", for tests and translations.
        message: one plain sentence: what was found and what to do.
    """

    field: Field
    code: str
    message: str
