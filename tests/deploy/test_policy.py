"""The bucket policies, by AWS's rules for the few elements that they use: Action, Resource with *, StringLike on s3:prefix."""

import fnmatch
import json
import urllib.request
from typing import Any

import pytest

from pipeline.errors import StoreError
from pipeline.retention import retire
from pipeline.store import Store
from tests.deploy.files import DEPLOY
from tests.pipeline.small import small_run
from tests.servers import s3_process

Request = tuple[str, str, str]                       # action, resource, prefix asked for


def policy(name: str) -> list[dict[str, Any]]:
    return list(json.loads((DEPLOY / f"policies/{name}.json").read_text())["Statement"])


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


def test_they_hold_on_a_server_that_enforces_them() -> None:
    """moto's: actions and resources, no conditions."""
    import boto3

    with s3_process() as server:
        root = {"endpoint_url": server.url, "aws_access_key_id": "tester", "aws_secret_access_key": "tester", "region_name": "us-east-1"}
        iam = boto3.client("iam", **root)
        boto3.client("s3", **root).create_bucket(Bucket="ganmill")
        keys = {}
        for name in ("writer", "reader"):
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=(DEPLOY / f"policies/ganmill-{name}.json").read_text())
            made = iam.create_access_key(UserName=name)["AccessKey"]
            keys[name] = {**server.options, "key": made["AccessKeyId"], "secret": made["SecretAccessKey"]}
        enforce = urllib.request.Request(f"{server.url}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"})
        with urllib.request.urlopen(enforce, timeout=10):
            pass
        run = small_run("s3://ganmill/sets", options=keys["writer"])
        version = run.finish()                       # probe, plan, shards, receipts, manifest, LATEST: all that a run does
        assert version.rows == 26 and retire(run.dataset, 1) == []
        reader = Store("s3://ganmill/sets/small", keys["reader"])
        assert reader.get_json("LATEST.json")["version"] == version.name
        for refused in (lambda: reader.put("LATEST.json", b"{}"), lambda: reader.delete("LATEST.json"),
                        lambda: reader.get(f"runs/{run.run_id}/plan.json"),
                        lambda: Store("s3://ganmill/elsewhere", keys["writer"]).put("a", b"1")):
            with pytest.raises(StoreError, match="no permission"):
                refused()
