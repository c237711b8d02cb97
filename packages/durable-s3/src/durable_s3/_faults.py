"""Classifies errors of S3: those to repeat, and advice for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from botocore.exceptions import (  # type: ignore[import-untyped]  # botocore ships no types
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
)

from durable_core.errors import StoreError

# RecursionError: boto3 follows a redirect by asking where the bucket is. If the answer is a redirect too, it asks again for ever.
ERRORS: Final = (BotoCoreError, ClientError, ReadTimeoutError, OSError, RecursionError)
# Damage or delay in transit, answered with 4xx.
_TRANSIENT: Final = frozenset(
    ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentChecksumMismatch", "SlowDown", "Throttling")
)
# Repeated as well, because the next attempt may find renewed credentials.
_EXPIRED: Final = frozenset(("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"))
_REFUSED: Final = frozenset(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"))
_ELSEWHERE: Final = frozenset(
    ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307")
)
_NETWORK: Final = (ConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError, FlexibleChecksumError, OSError)
_CREDENTIALS: Final = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound)


def status(error: BaseException) -> int:
    """Return the HTTP status of an error that S3 answered, else 0."""
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: BaseException) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def taken(error: BaseException) -> bool:
    """Return True if a conditional PUT was refused because the key exists."""
    return status(error) == 412 or code(error) == "PreconditionFailed"


def missing(error: BaseException) -> bool:
    """Return True if the key doesn't exist, but its bucket does."""
    return status(error) == 404 and code(error) != "NoSuchBucket"


def denied(error: StoreError) -> bool:
    """Return True if the request was refused for lack of rights."""
    return error.__cause__ is not None and status(error.__cause__) == 403


def away(error: StoreError) -> bool:
    """Return True if the request got no answer."""
    return error.__cause__ is not None and transient(error.__cause__)


def expired(error: BaseException) -> bool:
    return code(error) in _EXPIRED


def transient(error: BaseException) -> bool:
    """Return True if the request may be repeated. It may have taken effect already."""
    answer = status(error)
    if answer:
        return answer in (408, 409, 429) or (answer >= 500 and answer != 501) or code(error) in _TRANSIENT or expired(error)
    return isinstance(error, _NETWORK) and not isinstance(error, ProfileNotFound)


def refused_key(answer: Mapping[str, Any]) -> ClientError:
    """Return an error for one key that a DELETE of many keys did not delete."""
    name = str(answer.get("Code", "InternalError"))
    status_code = 403 if name == "AccessDenied" else 500
    said = {"Error": answer, "ResponseMetadata": {"HTTPStatusCode": status_code}}
    return ClientError(said, "DeleteObjects")


def store_error(error: Exception, right: str, at: str, endpoint: str) -> StoreError:
    """Return the `StoreError` to raise from `error`. It names the request, the answer, and what to do."""
    return StoreError(f"{right} on {at}: {_advice(error, right, endpoint)}")


def _advice(error: Exception, right: str, endpoint: str) -> str:
    name = code(error)
    if name == "NoSuchBucket":
        return f"the bucket does not exist at {endpoint}; create it, or correct the store's URL"
    if expired(error):
        return f"{name}: the credentials have expired; renew them where boto3 finds them"
    if name in _REFUSED:
        return f"{name}: {endpoint} refuses the credentials; check the profile or environment that boto3 takes them from"
    if isinstance(error, RecursionError):
        return f"{endpoint} redirects every request (301) without saying where to; write the bucket's own endpoint or region"
    if name in _ELSEWHERE and isinstance(error, ClientError):
        region = error.response["Error"].get("Region", "")
        return f"{name}: the bucket is in another region; write ?region={region} in the store's URL"
    if name == "RequestTimeTooSkewed":
        return f"{name}: this machine's clock is wrong; set it"
    if status(error) == 403:
        return f"{name}: {right} is not allowed; grant the policy that the store's documentation shows"
    if isinstance(error, _CREDENTIALS):
        return f"{error}; give credentials where boto3 looks for them: the environment, a profile, or a role of the machine"
    if transient(error):
        return f"{endpoint} is unavailable: {error}"
    return str(error)
