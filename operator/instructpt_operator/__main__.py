"""The operator's process: settings, lease, caches, workers, probes; ends in good order on SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from instructpt.api.version import VERSION
from instructpt.errors import ConfigError
from instructpt.plan.naming import OPERATOR
from instructpt.telemetry.logs import configure_logging
from instructpt_operator.caches import Caches
from instructpt_operator.executor import Executor
from instructpt_operator.looker import LOOKS, PodLooker
from instructpt_operator.manager import Manager
from instructpt_operator.metrics import render_metrics
from instructpt_operator.progress import fetch_progress
from instructpt_operator.reconcilers.config import Config
from instructpt_operator.runtime.client import KubeClient, ResourceType
from instructpt_operator.runtime.health import Health, HealthServer
from instructpt_operator.runtime.lease import LeaderElector, unique_identity
from instructpt_operator.runtime.recorder import EventRecorder
from instructpt_operator.settings import Settings, load_settings
from instructpt_operator.types import CONFIG_MAPS, JOBS, OURS, launcher_type

logger = logging.getLogger(__name__)

EXIT_OK, EXIT_USAGE, EXIT_NOT_READY = 0, 2, 3
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
STALE_SECONDS = 300.0
"""Without progress of an informer or a worker for so long, liveness fails (rule R20)."""
LEASE_CALL_SECONDS = 3.0
SYNC_SECONDS = 120.0
"""After which a leader whose caches are not filled makes room for another."""


class Operator:
    """One process of the operator, from its settings to its end.

    Args:
        settings: Frozen at start (rule R22).
        kubeconfig: Path; without one the pod's service account.
        namespace: Of the Lease, unless the settings say.
        host: Address of probes and metrics.
    """

    def __init__(self, settings: Settings, *, kubeconfig: str | None, namespace: str, host: str = "0.0.0.0") -> None:
        self.settings = settings
        identity = unique_identity(os.environ.get("POD_NAME"))
        # One for each worker and each thread that looks at pods, and for each informer: seven a namespace (rule R8).
        connections = len(OURS) * settings.workers + LOOKS + 7 * max(1, len(settings.watch_namespaces)) + 2
        self._client = KubeClient.connect(
            kubeconfig,
            qps=settings.qps,
            burst=settings.burst,
            connections=connections,
            user_agent=f"{OPERATOR}/{VERSION}",
        )
        recorder = EventRecorder(self._client, component="instructpt.dev/operator", instance=identity)
        self.elector: LeaderElector | None = None
        if settings.lease.enabled:
            lease = settings.lease
            # Without retries of its own: the election waits and tries again by its own clock (rule R15).
            own = KubeClient.connect(
                kubeconfig, timeout_seconds=LEASE_CALL_SECONDS, connections=2, throttle_retries=0,
                user_agent=f"{OPERATOR}/{VERSION} (lease)",
            )  # fmt: skip
            self.elector = LeaderElector(
                own, namespace=lease.namespace or namespace, name=lease.name, identity=identity, on_started=self._lead,
                on_answer=self._hurry, lease_seconds=lease.duration_seconds,
                renew_deadline_seconds=lease.renew_deadline_seconds, retry_seconds=lease.retry_seconds,
            )  # fmt: skip
        progress = settings.progress
        looker = PodLooker(
            self._client, fetch=fetch_progress if progress.enabled else None,
            interval_seconds=progress.interval_seconds, sample=progress.sample,
        )  # fmt: skip
        config = Config(
            settings=settings.hash,
            images=settings.render_images(),
            launcher=settings.launcher,
            progress_seconds=progress.interval_seconds,
        )
        self.manager = Manager(
            client=self._client,
            caches=lambda changed, answered: Caches(
                self._client, namespaces=settings.watch_namespaces, launcher=settings.launcher, on_change=changed,
                on_gone=looker.forget, on_answer=answered,
            ),
            looker=looker,
            make_executor=lambda feed: Executor(
                self._client, types=self._types(), feed=feed, recorder=recorder, may_write=self._may_write
            ),
            config=config, workers=settings.workers, resync_seconds=settings.resync_seconds,
        )  # fmt: skip
        self.health = self._health()
        ports = dict.fromkeys((settings.health.port, settings.metrics.port))
        self._servers = [HealthServer(self.health, self._metrics, host=host, port=port) for port in ports]

    def start(self) -> None:
        """Fill the caches and stand for leader."""
        for server in self._servers:
            server.start()
        self.manager.start()
        if self.elector is None:
            threading.Thread(target=self._lead, name="lead", daemon=True).start()
        else:
            self.elector.start()

    def stop(self) -> None:
        """Finish what runs, hand the lease over, stop answering (rule R21)."""
        finished = self.manager.stop()
        logger.info("stopped", extra={"finished": finished})
        if self.elector is not None and finished:  # what still runs may write; then the lease has to run out
            self.elector.release()
        self.manager.caches.stop()
        for server in self._servers:
            server.stop()

    def _lead(self) -> None:
        logger.info("leading", extra={"settings": self.settings.hash})
        give_up_at = time.monotonic() + SYNC_SECONDS
        for informer in self.manager.caches:
            while not informer.wait_synced(1.0):
                if time.monotonic() > give_up_at and self.elector is not None:
                    # Another replica may be able to list what this one cannot; the election ends the process.
                    raise TimeoutError(f"{informer.type.plural} could not be listed for {SYNC_SECONDS:g} s")
        self.manager.lead()

    def _hurry(self) -> None:
        """The lease is asked for every other second, and caches after an outage twice a minute."""
        self.manager.caches.hurry()

    def _may_write(self) -> bool:
        return self.elector is None or self.elector.may_write()

    def _types(self) -> dict[tuple[str, str], ResourceType]:
        launcher = launcher_type(self.settings.launcher)
        return {(t.api_version, t.kind): t for t in (*OURS.values(), JOBS, CONFIG_MAPS, launcher)}

    def _health(self) -> Health:
        health = Health()
        for informer in self.manager.caches:
            name = f"informer-{informer.type.plural}-{id(informer):x}"
            health.watch_age(name, informer.last_activity, STALE_SECONDS)
            health.watch_thread(f"{name}-thread", lambda informer=informer: informer.alive)  # type: ignore[misc]
        for kind, pool in self.manager.pools.items():
            health.watch_age(f"workers-{kind}", pool.last_activity, STALE_SECONDS)
            health.watch_thread(f"workers-{kind}-threads", lambda pool=pool: pool.alive)  # type: ignore[misc]
        health.watch_ready("caches", lambda: self.manager.caches.synced)
        return health

    def _metrics(self) -> bytes:
        leading = self.elector is None or self.elector.is_leader()
        return render_metrics(self.manager, self._client, leading=leading, lease=self.settings.lease.name)


def main(argv: list[str] | None = None) -> int:
    """``instructpt-operator``: run until SIGTERM.

    Returns:
        0 after SIGTERM, 2 for wrong settings, 3 where no API server can be found.
    """
    parser = argparse.ArgumentParser(
        prog="instructpt-operator", description="Reconciles the objects of instructpt.dev."
    )
    parser.add_argument("--config", type=Path, help="YAML file with the settings")
    parser.add_argument("--kubeconfig", help="kubeconfig; in a pod its service account is used")
    parser.add_argument("--namespace", help="namespace of the Lease; in a pod its own")
    parser.add_argument("--host", default="0.0.0.0", help="address of probes and metrics")  # noqa: S104
    parser.add_argument("--version", action="version", version=VERSION)
    args = parser.parse_args(argv)
    configure_logging(os.environ.get("INSTRUCTPT_LOG_LEVEL", "INFO"))
    logging.getLogger("instructpt_operator").setLevel(os.environ.get("INSTRUCTPT_LOG_LEVEL", "INFO"))
    try:
        settings = load_settings(args.config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        operator = Operator(
            settings, kubeconfig=args.kubeconfig, namespace=args.namespace or _own_namespace(), host=args.host
        )
    except Exception as error:  # no kubeconfig, no service account, a port that is taken
        print(f"error: cannot start: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_NOT_READY
    operator.start()
    stop.wait()
    operator.stop()
    return EXIT_OK


def _own_namespace() -> str:
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else "default"


if __name__ == "__main__":
    sys.exit(main())
