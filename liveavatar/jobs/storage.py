"""Objects under one URL, for machines that share no folder: S3 and the like, or a folder.

fsspec speaks to all of them; it is loaded with the first `Storage`. Credentials and endpoints are
the environment's (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...) or those of fsspec's own
configuration. An object appears whole, and who looks for it afterwards finds it: S3 promises that
since 2020, and what lies in a folder is renamed when it is written.

Every call is one attempt that ends within seconds; `patiently` makes several.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from liveavatar.errors import ConfigError, SpoolUnavailableError

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

_TROUBLE = "the storage of the videos cannot be reached"
_CONNECT_S, _READ_S = 4.0, 6.0
_PROBE_EVERY_S = 2.0
_AGAIN_S = 0.5
# Attempts are counted here and not in three layers at once.
_S3_OPTIONS = {
    "config_kwargs": {
        "connect_timeout": _CONNECT_S,
        "read_timeout": _READ_S,
        "retries": {"max_attempts": 1},
    }
}


class Storage:
    """A place for objects by key; a key is a relative path.

    Args:
        url: such as "s3://bucket/prefix" or "file:///mnt/videos".

    Raises:
        ConfigError: there is no library for such a URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            import fsspec  # nobody without a storage waits for it

            protocol = fsspec.utils.get_protocol(url)
            options = _S3_OPTIONS if protocol in ("s3", "s3a") else {}
            self._is_folder = protocol in ("file", "local")
            self._files: Any = fsspec.filesystem(
                protocol,
                use_listings_cache=False,
                skip_instance_cache=True,
                **options,
                **({"auto_mkdir": True} if self._is_folder else {}),
            )
        except ImportError:
            raise ConfigError(
                f"storage: '{url}' needs a library that is not installed; for S3: "
                ".venv/bin/python -m pip install -r requirements-s3.txt"
            ) from None
        except ValueError as error:
            raise ConfigError(
                f"storage: expected a URL such as s3://bucket/prefix: {error}"
            ) from None
        if hasattr(self._files, "retries"):
            self._files.retries = 1
        self._root = self._files._strip_protocol(url).rstrip("/")
        self._lock = threading.Lock()
        self._trouble: str | None = None
        self._is_probing = False

    def complaint(self) -> str | None:
        """Why nothing can be stored now, a few words; None when it can, as far as is known."""
        return self._trouble

    def check(self) -> None:
        """Store, read and remove an object; ConfigError when that does not work."""
        key, data = f"probes/{secrets.token_hex(8)}", b"whole"
        try:
            self.put(key, data)
            if self.get([key]) != [data]:
                raise ConfigError(f"storage: '{self.url}' does not give back what is stored there")
            self.remove(key)
        except SpoolUnavailableError as error:
            self._trouble = None  # nobody waits for it
            raise ConfigError(f"storage: '{self.url}' cannot be used: {error.__cause__}") from None

    def put(self, key: str, data: bytes) -> None:
        """Store bytes under a key. This and the following raise SpoolUnavailableError."""
        with self._border(), self._whole(key) as path:
            self._files.pipe_file(path, data)

    def put_file(self, key: str, source: Path) -> None:
        """Store what a file holds under a key; FileNotFoundError when there is no such file."""
        source.stat()
        with self._border(), self._whole(key) as path:
            self._files.put_file(str(source), path)

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """What is stored under each key, all asked for at a time; None where nothing is."""
        with self._border():
            paths = [self._path(key) for key in keys]
            # A start spares s3fs the question for the size, one request of two.
            found = self._files.cat(paths, on_error="return", start=0)
            answers = [found[path] for path in paths]
            for answer in answers:
                if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                    raise answer
        return [answer if isinstance(answer, bytes) else None for answer in answers]

    def get_file(self, key: str, target: Path) -> bool:
        """Fetch an object to a file, which appears whole; returns whether there is one."""
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            with self._border():
                try:
                    self._files.get_file(self._path(key), str(unfinished))
                except FileNotFoundError:
                    return False
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
        return True

    def exist(self, keys: Sequence[str]) -> list[bool]:
        """Whether something is stored under each key."""
        with self._border():
            return [bool(self._files.exists(self._path(key))) for key in keys]

    def sizes(self, prefix: str) -> dict[str, int]:
        """Keys behind a folder of them, relative to it, and the bytes of each object."""
        with self._border():
            folder = self._path(prefix)
            found = self._files.find(folder, detail=True)
        start = len(folder) + 1
        sizes = {path[start:]: int(info["size"]) for path, info in found.items() if info}
        return {key: size for key, size in sizes.items() if "/." not in f"/{key}"}

    def folders(self, prefix: str) -> set[str]:
        """Names of the folders of keys directly behind another one."""
        with self._border():
            try:
                found = self._files.ls(self._path(prefix), detail=True)
            except FileNotFoundError:
                return set()
        return {
            info["name"].rstrip("/").rpartition("/")[2]
            for info in found
            if info["type"] == "directory"
        }

    def remove(self, prefix: str) -> None:
        """Remove an object, or all of a folder; does nothing where there is none."""
        with self._border(), suppress(FileNotFoundError):
            self._files.rm(self._path(prefix), recursive=True)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextmanager
    def _whole(self, key: str) -> Iterator[str]:
        """A path to write to; in a folder, what is written gets its name when it is whole."""
        path = self._path(key)
        if not self._is_folder:
            yield path
            return
        folder, _, name = path.rpartition("/")
        unfinished = f"{folder}/.{name}.{secrets.token_hex(4)}"
        yield unfinished
        self._files.mv(unfinished, path)

    @contextmanager
    def _border(self) -> Iterator[None]:
        """Turn whatever a file system of fsspec raises into one error, and remember it."""
        try:
            yield
        except Exception as error:  # each has errors of its own
            self._note(error)
            raise SpoolUnavailableError(f"{_TROUBLE} now") from error
        self._trouble = None

    def _note(self, error: Exception) -> None:
        with self._lock:
            self._trouble = _TROUBLE
            if self._is_probing:
                return
            self._is_probing = True
        logger.error("%s: %s: %s", _TROUBLE, type(error).__name__, error)
        threading.Thread(target=self._wait_until_back, name="storage", daemon=True).start()

    def _wait_until_back(self) -> None:
        time.sleep(_PROBE_EVERY_S)
        while self._trouble is not None:
            with suppress(SpoolUnavailableError):
                self.put("probes/alive", b"alive")
            time.sleep(_PROBE_EVERY_S)
        self._is_probing = False
        logger.info("the storage of the videos can be reached again")


def patiently(action: Callable[[], Found], patience_s: float) -> Found:
    """Do something with a storage, again while it cannot be reached; SpoolUnavailableError."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return action()
        except SpoolUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN_S)
