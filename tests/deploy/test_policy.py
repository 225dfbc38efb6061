"""The bucket policies, by AWS's rules for the few elements that they use: Action, Resource with *, StringLike on s3:prefix."""

import fnmatch
import json
from typing import Any

from tests.deploy.files import DEPLOY

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
