"""A client of the Kubernetes API that deals in plain JSON objects."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from kubernetes import config
from kubernetes.client import Configuration

from instructpt_operator.runtime.errors import ApiError
from instructpt_operator.runtime.transport import THROTTLE_RETRIES, Transport, WatchStream

__all__ = ["FIELD_MANAGER", "ApiError", "KubeClient", "ResourceType", "WatchStream"]

FIELD_MANAGER = "instructpt-operator"
PAGE_ITEMS = 500

Items = list[dict[str, Any]]

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceType:
    """One type of object that an API server may serve."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of one object, or of all of them; ``namespace`` is ignored where objects have none.

        Raises:
            ValueError: One object of a namespaced type is asked for without a namespace.
        """
        parts = ["apis" if "/" in self.api_version else "api", self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        elif self.namespaced and name is not None:
            raise ValueError(f"{self.kind} {name!r} needs a namespace")
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/" + "/".join(parts)


class KubeClient:
    """Calls one API server. Thread-safe; every call has a timeout and spends from one budget.

    Calls raise ``ApiError``. A 429 is retried within bounds as the server asks, except by ``pages`` and ``watch``:
    their caller has a back-off of its own.

    Args:
        transport: Sends the requests.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @classmethod
    def connect(
        cls,
        kubeconfig: str | None = None,
        *,
        qps: float = 100.0,
        burst: int = 200,
        timeout_seconds: float = 30.0,
        connections: int = 20,
        user_agent: str = FIELD_MANAGER,
        throttle_retries: int = THROTTLE_RETRIES,
    ) -> KubeClient:
        """A client by a kubeconfig or, inside a pod, by its service account.

        Args:
            kubeconfig: Path of the file. Without one: the service account where there is one, else the default file.
            qps: Requests per second, averaged.
            burst: Requests that may go at once.
            timeout_seconds: Of a call that does not say otherwise.
            connections: Kept open: one for each worker and informer, and two.
            user_agent: Who the server's log says we are.
            throttle_retries: How often a call is sent again that the server answers with 429.
        """
        configuration = Configuration()
        if kubeconfig is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        configuration.connection_pool_maxsize = connections
        return cls(
            Transport(
                configuration, qps=qps, burst=burst, timeout_seconds=timeout_seconds, user_agent=user_agent,
                throttle_retries=throttle_retries,
            )
        )  # fmt: skip

    @property
    def calls(self) -> Counter[tuple[str, int]]:
        """How many requests ended how, by verb (get, list, watch, create, update, patch, delete) and status; a copy."""
        return self._transport.calls

    def guard_writes(self, may_write: Callable[[], bool]) -> None:
        """Ask before each write, after it has waited for its turn; where the answer is no, it is not sent."""
        self._transport.may_write = may_write

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Any call that answers with a JSON object."""
        return self._transport.send(
            _VERBS[method], method, path, query=query, body=body, content_type=content_type,
            timeout_seconds=timeout_seconds,
        )  # fmt: skip

    def serves(self, type_: ResourceType) -> bool:
        """Whether the server knows the type now (a CRD may be missing)."""
        try:
            known = self.request("GET", f"/{'apis' if '/' in type_.api_version else 'api'}/{type_.api_version}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return any(resource.get("name") == type_.plural for resource in known.get("resources") or ())

    def get(self, type_: ResourceType, namespace: str | None, name: str) -> dict[str, Any]:
        """One object."""
        return self.request("GET", type_.path(namespace, name))

    def list(
        self,
        type_: ResourceType,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int | None = None,
    ) -> Items:
        """All objects, or the first ``limit`` of them, in one call; of a namespace or of all."""
        query = _selectors(label_selector, field_selector)
        if limit is not None:
            query["limit"] = str(limit)
        body = self._transport.send("list", "GET", type_.path(namespace), query=query)
        return _page(type_, body)[0]

    def pages(
        self, type_: ResourceType, namespace: str | None = None, *, label_selector: str | None = None,
        limit: int = PAGE_ITEMS,
    ) -> Iterator[tuple[Items, str]]:  # fmt: skip
        """All objects, page by page, each with the resource version of the list: where a watch goes on.

        A list that takes too long ends with status 410: start again.
        """
        query = _selectors(label_selector, None) | {"limit": str(limit)}
        while True:
            body = self._transport.send("list", "GET", type_.path(namespace), query=query, throttle_retries=0)
            yield _page(type_, body)
            token = body["metadata"].get("continue")
            if not token:
                return
            query["continue"] = token

    def watch(
        self,
        type_: ResourceType,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        timeout_seconds: float,
        read_timeout_seconds: float,
    ) -> WatchStream:
        """Raw events from ``resource_version`` on, bookmarks and errors among them.

        Args:
            type_: Of the objects.
            namespace: Theirs; all without one.
            resource_version: Of a list, an event or a bookmark.
            label_selector: Of the objects.
            timeout_seconds: After which the server ends the watch.
            read_timeout_seconds: How long the connection may be silent.
        """
        query = _selectors(label_selector, None) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(int(timeout_seconds)),
        }
        return self._transport.stream(type_.path(namespace), query=query, read_timeout_seconds=read_timeout_seconds)

    def create(self, type_: ResourceType, obj: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; 409 with reason ``AlreadyExists`` where its name is taken."""
        return self.request("POST", type_.path(obj["metadata"].get("namespace")), query=_WRITE, body=obj)

    def replace(self, type_: ResourceType, obj: Mapping[str, Any], *, subresource: str | None = None) -> dict[str, Any]:
        """Replace an object; 409 with reason ``Conflict`` where its ``resourceVersion`` is not the latest."""
        return self.request("PUT", _path_of(type_, obj, subresource), query=_WRITE, body=obj)

    def merge_patch(
        self,
        type_: ResourceType,
        namespace: str | None,
        name: str,
        body: Mapping[str, Any],
        *,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        """Change fields; with ``metadata.uid`` or ``metadata.resourceVersion`` in ``body``, only of that object."""
        return self.request(
            "PATCH", type_.path(namespace, name, subresource), query=_WRITE, body=body,
            content_type="application/merge-patch+json",
        )  # fmt: skip

    def apply(self, type_: ResourceType, obj: Mapping[str, Any], *, force: bool = False) -> dict[str, Any]:
        """Server-side apply: create the object, or make the fields that we manage what ``obj`` says."""
        # JSON is YAML.
        return self.request(
            "PATCH", _path_of(type_, obj, None), query=_WRITE | {"force": "true" if force else "false"}, body=obj,
            content_type="application/apply-patch+yaml",
        )  # fmt: skip

    def delete(
        self, type_: ResourceType, namespace: str | None, name: str, *, uid: str | None = None,
        propagation: str = "Background",
    ) -> None:  # fmt: skip
        """Delete an object. Fine if there is none, or if the one of that name has another ``uid``."""
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            self.request("DELETE", type_.path(namespace, name), body=body)
        except ApiError as error:
            if error.status != 404 and not (uid and error.status == 409 and "precondition" in error.message.lower()):
                raise


_WRITE = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}


def _path_of(type_: ResourceType, obj: Mapping[str, Any], subresource: str | None) -> str:
    return type_.path(obj["metadata"].get("namespace"), obj["metadata"]["name"], subresource)


def _selectors(label: str | None, field: str | None) -> dict[str, str]:
    return {name: value for name, value in (("labelSelector", label), ("fieldSelector", field)) if value}


def _page(type_: ResourceType, body: dict[str, Any]) -> tuple[Items, str]:
    """The items of a list, with the type that the server leaves out, and the list's resource version."""
    try:
        version = str(body["metadata"]["resourceVersion"])
        items = [
            {"apiVersion": type_.api_version, "kind": type_.kind, **item}
            for item in body.get("items") or []
            if item["metadata"]["name"]
        ]
    except (KeyError, TypeError) as error:
        raise ApiError(0, "BadBody", f"the answer is not a list of {type_.kind}: {error!r}") from error
    return items, version
