"""moto's S3 on loopback, in a process of its own; see `benchmarks.common.child`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from benchmarks.common.child import serve

_BUCKET = "bucket"
_KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def start(archive: str) -> dict[str, Any]:
    """Serve an archive until this process ends; the answer has what a client must set."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    key, secret, region = _KEYS.values()
    client = boto3.client("s3", region, endpoint_url=endpoint, aws_access_key_id=key,
                          aws_secret_access_key=secret)  # fmt: skip
    client.create_bucket(Bucket=_BUCKET)
    root = Path(archive)
    for file in filter(Path.is_file, root.rglob("*")):
        client.upload_file(str(file), _BUCKET, file.relative_to(root.parent).as_posix())
    variables = _KEYS | {"AWS_ENDPOINT_URL": endpoint}
    return {"url": f"s3://{_BUCKET}/{root.name}", "variables": variables}


if __name__ == "__main__":
    serve(start)
