"""Logs with one JSON object a line, from the standard library's logging."""

from __future__ import annotations

import json
import logging
import logging.config
import traceback
from datetime import datetime, timezone
from typing import Any


class JsonLines(logging.Formatter):
    """One line per record: time, level, message, process, and the record's ``facts``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "process": record.process,
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["error"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, default=str)


def dictionary(level: str = "info") -> dict[str, Any]:
    """The configuration of logging: the server's logs as lines of JSON on the standard error stream."""
    logger = {"handlers": ["lines"], "level": level.upper(), "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": JsonLines}},
        "handlers": {"lines": {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.stderr"}},
        "loggers": {name: dict(logger) for name in ("poolexport.serve", "_granian", "granian.access", "uvicorn")},
    }


def configure(level: str = "info") -> None:
    """Write the logs of this server to the standard error stream."""
    logging.config.dictConfig(dictionary(level))
