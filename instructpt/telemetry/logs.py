"""The only logging set-up; entry points call it once."""

from __future__ import annotations

import logging
import sys

import structlog

_QUIET = ("botocore", "boto3", "urllib3", "s3transfer", "httpx", "httpcore", "matplotlib", "filelock")


def configure_logging(level: str = "INFO", *, json_lines: bool = False) -> None:
    """Send our records and the libraries' through one formatter to stderr.

    Args:
        level: Least level of our own records; libraries stay at WARNING.
        json_lines: One JSON object a line instead of aligned text.
    """
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if not json_lines else "iso"),
    ]
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("instructpt").setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
