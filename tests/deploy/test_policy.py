"""The bucket policies, against the requests that a real run sends to a real S3 server.

The server of the tests looks at no policy, so each recorded request is looked up here by AWS's rules for the few
elements that our policies use: Action, Resource with *, and StringLike on s3:prefix.
"""

import fnmatch
import json
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DEPLOY
from tests.e2e.conftest import Command
from tests.servers import S3Server, faulty

Request = tuple[str, str, str]                       # action, resource, prefix asked for


def policy(name: str) -> list[dict[str, Any]]:
    return list(json.loads((DEPLOY / f"policies/{name}.json").read_text())["Statement"])


def meaning(method: str, path: str, bucket: str) -> Request:
    """The S3 action that an HTTP request is."""
    url = urllib.parse.urlsplit(path)
    query = urllib.parse.parse_qs(url.query, keep_blank_values=True)
    name, _, key = urllib.parse.unquote(url.path).lstrip("/").partition("/")
    assert name == bucket, path
    if not key:
        if method == "POST" and "delete" in query:
            return "s3:DeleteObject", f"arn:aws:s3:::{bucket}/*", ""
        return "s3:ListBucket", f"arn:aws:s3:::{bucket}", query.get("prefix", [""])[0]
    action = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "POST": "s3:PutObject",
              "DELETE": "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"}[method]
    return action, f"arn:aws:s3:::{bucket}/{key}", ""


def allowed(request: Request, statements: list[dict[str, Any]]) -> list[str]:
    """The statements that allow it."""
    action, resource, prefix = request
    found = []
    for statement in statements:
        wanted = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
        if (action in statement["Action"] and any(fnmatch.fnmatchcase(resource, r) for r in statement["Resource"])
                and any(fnmatch.fnmatchcase(prefix, w) for w in wanted)):
            found.append(statement["Sid"])
    return found


@pytest.fixture
def source(command: Command) -> Path:
    """A small folder of images, two classes."""
    from PIL import Image

    folder = command.folder / "images"
    for c, name in enumerate(("round", "square")):
        (folder / name).mkdir(parents=True)
        for i in range(24 if c else 12):
            Image.new("L", (16, 16), 60 * c + i).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_does_nothing_that_the_writers_policy_refuses(command: Command, s3_server: S3Server, source: Path) -> None:
    bucket = s3_server.new_bucket()
    import fsspec

    fs = fsspec.filesystem("s3", **s3_server.options)
    fs.put(str(source), f"{bucket}/sources/shapes", recursive=True)
    with faulty(s3_server) as proxy:
        command.env |= proxy.server.environment
        config = command.config(
            source={"format": "imagefolder", "url": f"s3://{bucket}/sources/shapes"},
            train={"model": "mlp", "budget": {"kimg": 0.3}}, publish={"url": f"s3://{bucket}/sets"},
        )
        ended = command.run("run", str(config), "--json", timeout_s=280)
        assert ended.status == 0, ended.err
        assert command.run("run", str(config), "--json").result["status"] == "up to date"
        checked = command.run("verify", f"s3://{bucket}/sets/tiny", "--orphans")
        assert checked.status == 0, (checked.err, proxy.seen[-6:], fs.find(bucket))
    requests = {meaning(method, path, bucket) for method, path in proxy.seen}
    assert len(requests) > 20
    ours = [(a, r.replace(bucket, "ganmill"), p) for a, r, p in requests]
    assert [r for r in ours if not allowed(r, policy("ganmill-writer"))] == []
    used = {sid for r in ours for sid in allowed(r, policy("ganmill-writer"))}
    assert used == {s["Sid"] for s in policy("ganmill-writer")}, "a statement that no run needs"


def test_the_policies_keep_to_their_places() -> None:
    writer, reader = policy("ganmill-writer"), policy("ganmill-reader")
    at = "arn:aws:s3:::ganmill"
    assert allowed(("s3:PutObject", f"{at}/sets/digits/LATEST.json", ""), writer)
    for request in [
        ("s3:PutObject", f"{at}/sources/shapes/a.png", ""), ("s3:GetObject", f"{at}/elsewhere/a", ""),
        ("s3:ListBucket", at, ""), ("s3:ListBucket", at, "elsewhere/"), ("s3:DeleteObject", f"{at}/sources/x", ""),
        ("s3:PutBucketPolicy", at, ""), ("s3:PutObject", "arn:aws:s3:::other/sets/x", ""),
    ]:
        assert not allowed(request, writer), request
    assert allowed(("s3:GetObject", f"{at}/sets/digits/LATEST.json", ""), reader)
    assert allowed(("s3:GetObject", f"{at}/sets/digits/versions/v000001/data/train-00000.parquet", ""), reader)
    for action, key in [("s3:GetObject", "sets/digits/runs/abc/prepared/train.safetensors"), ("s3:PutObject", "sets/digits/LATEST.json")]:
        assert not allowed((action, f"{at}/{key}", ""), reader), key
