"""From whatever fsspec, botocore or the operating system raised to one clear `StoreError`: what, where, what to do.

Botocore and aiohttp are recognised by the names of their classes, so that nothing heavy is imported here and a store
that needs neither works without them.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import GanmillError, MissingObject, StoreError

TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset({
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException",
    "TooManyRequests", "TooManyRequestsException", "OperationAborted", "ConditionalRequestConflict",
    "RequestTimeoutException", "XAmzContentSHA256Mismatch", "IncompleteBody", "BadDigest",
})
_TRANSIENT_CLASSES = frozenset({
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "HTTPClientError",
    "ResponseStreamingError", "IncompleteReadError", "ClientConnectionError", "ClientPayloadError",
    "ServerDisconnectedError", "ServerTimeoutError", "FSTimeoutError", "TimeoutError", "ConnectionError",
})
_CREDENTIAL_CLASSES = frozenset({
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
    "TokenRetrievalError", "UnauthorizedSSOTokenError", "SSOTokenLoadError", "NoAuthTokenError",
})
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_REFUSED_CODES = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"})
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
NAMES_OF_SECRETS = re.compile(r"secret|passw|token|key|credential|sas|connection_string|auth", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it was raised from, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def code_and_status(error: BaseException) -> tuple[str, int]:
    """The S3 error code and HTTP status of a botocore `ClientError` in the chain; ("", 0) when there is none."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping) and "Error" in response:
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response["Error"].get("Code", "")), int(status or 0)
    return "", 0


def is_transient(error: BaseException) -> bool:
    """Whether the same call may well succeed when it is made again."""
    if isinstance(error, GanmillError):
        return False
    code, status = code_and_status(error)
    if code or status:
        return code in _TRANSIENT_CODES or status in TRANSIENT_STATUS or code in {str(s) for s in TRANSIENT_STATUS}
    if isinstance(error, OSError) and error.errno in (errno.EINTR, errno.EAGAIN, errno.ESTALE):
        return True
    return any(name in _TRANSIENT_CLASSES for cause in causes(error) for name in _class_names(cause))


def is_precondition(error: BaseException) -> bool:
    """Whether the store refused a conditional put because the condition did not hold."""
    code, status = code_and_status(error)
    return isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412") or status == 412


def is_missing_bucket(error: BaseException) -> bool:
    """Whether the store said that the bucket itself is not there."""
    return code_and_status(error)[0] == "NoSuchBucket" or "NoSuchBucket" in str(error)


def is_missing(error: BaseException) -> bool:
    """Whether the store said that there is no such object (the bucket being there)."""
    code, status = code_and_status(error)
    if is_missing_bucket(error):
        return False
    return isinstance(error, FileNotFoundError) or code in ("NoSuchKey", "404") or status == 404


def explain(error: BaseException, doing: str, where: str, tries: int = 1) -> StoreError:
    """The `StoreError` to raise for `error`.

    Args:
        doing: a verb phrase, e.g. "write" or "list".
        where: URL of the object or folder.
        tries: how often it was tried.
    """
    if isinstance(error, StoreError):
        return error
    text = " ".join(str(error).split()) or type(error).__name__
    head = f"can't {doing} {where}"
    if is_missing(error) and doing != "write":
        return MissingObject(f"{head}: there is no such object")
    reason, remedy = _reason(error, text)
    again = f" (tried {tries} times)" if tries > 1 else ""
    return StoreError(f"{head}: {reason}{again}; {remedy}")


def missing_protocol(url: str, error: BaseException) -> StoreError:
    """For a URL whose protocol nobody installed here speaks, or that nobody knows."""
    protocol = url.partition("://")[0]
    if protocol in _EXTRAS:
        return StoreError(f"can't open {url}: no driver for {protocol}:// is installed; "
                          f"pip install 'ganmill[{_EXTRAS[protocol]}]'")
    if isinstance(error, ImportError):
        return StoreError(f"can't open {url}: {error}; install the fsspec driver for {protocol}://")
    return StoreError(f"can't open {url}: unknown protocol {protocol}://; "
                      "give a folder or s3://, gs://, az://, file:// or memory://")


def secrets_of(options: Mapping[str, Any] | None, url: str = "") -> frozenset[str]:
    """Every value that must never be printed: from the storage options, the URL's user part and the environment."""
    found = {match.rstrip("@") for match in _USERINFO.findall(url)}
    found |= {part for userinfo in list(found) for part in userinfo.split(":", 1)[1:]}
    found |= {v for k, v in os.environ.items() if k.startswith(("AWS_", "AZURE_", "GOOGLE_")) and v
              and re.search(r"SECRET|TOKEN|PASSWORD|CONNECTION_STRING|ACCOUNT_KEY", k) and not k.endswith("_FILE")}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, str(key))
        elif isinstance(value, (list, tuple)):
            for inner in value:
                walk(inner, name)
        elif isinstance(value, str) and NAMES_OF_SECRETS.search(name):
            found.add(value)

    walk(options or {}, "")
    return frozenset(s for s in found if len(s) >= 4)


def scrub(text: str, secrets: frozenset[str]) -> str:
    """`text` with every secret and every URL's user part replaced by ***."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _USERINFO.sub("***@", text)


def _class_names(error: BaseException) -> list[str]:
    return [c.__name__ for c in type(error).__mro__]


def _reason(error: BaseException, text: str) -> tuple[str, str]:
    """(what happened, what to do) for an error that is not about one missing object."""
    code, status = code_and_status(error)
    number = error.errno if isinstance(error, OSError) else None
    if is_missing_bucket(error):
        return "the bucket does not exist", "create it or correct the URL (and endpoint_url)"
    if code in _EXPIRED_CODES:
        return "the credentials have expired", "renew them and continue with the same --run-id"
    if code in _REFUSED_CODES:
        return f"the store refused the credentials ({code})", "check key, secret and endpoint_url"
    if code == "RequestTimeTooSkewed":
        return "this machine's clock is off by more than the store allows", "set the clock"
    if any(name in _CREDENTIAL_CLASSES for cause in causes(error) for name in _class_names(cause)):
        return f"no usable credentials ({text})", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or storage_options"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", "free some space and continue with the same --run-id, or publish elsewhere"
    if isinstance(error, PermissionError) or status in (401, 403) or number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"no permission ({text})", "grant this user or key the right to read, write, list and delete there"
    if number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return f"a file lies where a folder must be, or the reverse ({text})", "move it away or choose another URL"
    if number == errno.ENAMETOOLONG:
        return "the name is too long for this file system", "choose a shorter URL"
    if isinstance(error, NotImplementedError):
        return "this kind of store can't do that", "use a store that can be written: a folder, s3://, gs:// or az://"
    if is_transient(error):
        return (f"the store did not answer as it should ({text})",
                "check that it is up and that endpoint_url is right, then continue with the same --run-id")
    return f"{type(error).__name__}: {text}", "check the URL and storage_options"
