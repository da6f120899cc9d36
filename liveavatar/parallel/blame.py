"""Errors that name the job whose work they come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from liveavatar.errors import EngineError, JobFaultError


@contextmanager
def work_of(job: int) -> Iterator[None]:
    """What fails inside is the fault of this job; what the machinery says of itself passes.

    Raises:
        JobFaultError: in place of any other error, which is its cause.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise JobFaultError(job, f"job {job}: {error!r}") from error
