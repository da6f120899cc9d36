"""An S3 server in this process that can be away: moto's, which keeps its objects meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from tests.web.live_server import free_port

BUCKET = "videos"


class S3Server:
    """Begins to serve when it is made."""

    def __init__(self) -> None:
        self._port = free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self.come()

    def come(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()

    def go(self) -> None:
        """Connections are refused from now on."""
        self._server.stop()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server with a bucket, and the usual variables set for it."""
    server = S3Server()
    variables = {
        "AWS_ACCESS_KEY_ID": "a key",
        "AWS_SECRET_ACCESS_KEY": "a secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.address,
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield server
    finally:
        server.go()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
