"""Fields that say where something is: which URIs they take, in Python and on the API server, in the same words.

No message ever repeats a value: it may hold a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field

from instructpt.api.rules import Rule

# Patterns are read by Python's re and by the API server's RE2, so they use what both have.
# A secret key often holds a slash, so what looks like a path may be the rest of one. A bucket has neither '@' nor ':',
# a port is a number, and no server's URL has an '@'. In the path of an s3:// URI both are legal characters of a key.
CREDENTIALS = (
    r"(?i)://[^/]*@"  # anybody@anywhere
    r"|s3://[^/]*:"  # key:secr/et@bucket
    r"|https?://[^@]*@"  # user:1234/5@host
    r"|://[^/\[]*:\d*[^\d/?#\s]"  # the same of any scheme: what follows the ':' is no port
    r"|^\s*\w+:/?[^/][^@]*@"  # the same with too few slashes, or none
)
# A '?' alone is a glob that stands for one character.
QUERY = r"://[^/]*[?#]|://.*\?[\w.-]+="
_HALF_SCHEME = r"(?i)^\s*(s3|file|https?):(/?[^/]|/?$)"
_PLACE = r"(?i)^(s3|file)://"
_CORPUS = r"(?i)^(s3|file|builtin)://"
# One process's own, for tests: on a cluster what a pod keeps in memory goes with the pod.
_MEMORY = r"(?i)^memory://"
_URL = r"^https?://[^/?#\s]+(/[^?#\s]*)?$"


def holds_credentials(uri: str) -> bool:
    """Whether there is userinfo in a URI, whatever its scheme."""
    return re.search(CREDENTIALS, uri) is not None


def _is_place(pattern: str) -> Callable[[str], bool]:
    def fits(uri: str) -> bool:
        known = "://" not in uri or re.search(pattern, uri) or re.search(_MEMORY, uri)
        return bool(known) and not re.search(QUERY, uri) and not re.search(_HALF_SCHEME, uri)

    return fits


def _place(what: str, pattern: str) -> Rule:
    return Rule(
        f"must be {what}, without a query; endpoint and region are fields of their own",
        f"(!self.contains('://') || self.matches(r'{pattern}')) && !self.matches(r'{QUERY}') && "
        f"!self.matches(r'{_HALF_SCHEME}')",
        _is_place(pattern),
    )


CREDENTIALS_RULE = Rule(
    "must not hold credentials; name them with secretRef",
    f"!self.matches(r'{CREDENTIALS}')",
    lambda uri: not holds_credentials(uri),
)

URI_RULES: dict[str, tuple[Rule, ...]] = {
    "place": (CREDENTIALS_RULE, _place("a path, a hub id or s3://bucket/prefix", _PLACE)),
    "corpus": (CREDENTIALS_RULE, _place("a path, a glob, s3://bucket/prefix or builtin://python-docs", _CORPUS)),
    "url": (
        CREDENTIALS_RULE,
        Rule(
            "must be a URL that begins with http:// or https://, without a query",
            f"self.matches(r'{_URL}')",
            lambda uri: re.search(_URL, uri) is not None,
        ),
    ),
}
"""The rules of a field, by its :data:`URI_MARK`. Where credentials are found, that alone is said in Python."""

URI_LIMIT = 1024
"""Characters of a location. Rules on longer ones would cost the API server more than it grants a definition."""

URI_MARK = "x-instructpt-uri"
"""Marks a field for :data:`URI_RULES`; it never reaches a CRD."""


def _checked(sort: str) -> AfterValidator:
    def check(uri: str) -> str:
        for rule in URI_RULES[sort]:
            if rule.holds is not None and not rule.holds(uri):
                raise ValueError(rule.message)
        return uri

    return AfterValidator(check)


def _field(sort: str) -> object:
    return Field(min_length=1, max_length=URI_LIMIT, json_schema_extra={URI_MARK: sort})


Uri = Annotated[str, _field("place"), _checked("place")]
"""Where something is read or written; of a model, a hub id as well."""
CorpusUri = Annotated[str, _field("corpus"), _checked("corpus")]
"""Where documents are."""
Url = Annotated[str, _field("url"), _checked("url")]
"""A server."""
