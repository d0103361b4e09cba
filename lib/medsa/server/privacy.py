"""Keeps patients out of the log: ids are shortened to a hash before any handler sees them."""

from __future__ import annotations

import hashlib
import logging
import re
import traceback
import warnings

_UID = re.compile(r"\b[0-2](?:\.\d+){4,}\b")
_QUERY = re.compile(r"\?[^\s\"']*")


def short(identifier: str) -> str:
    """Eight hex digits that stand for an image, label or user in the log."""
    return hashlib.blake2b(identifier.encode(errors="replace"), digest_size=4).hexdigest()


def scrubbed(text: str) -> str:
    """`text` with every DICOM UID replaced by its short hash."""
    return _UID.sub(lambda match: short(match.group()), text)


def frames(error: BaseException) -> str:
    """Where `error` came from: type and frames, but no message and no values, which may quote a header."""
    steps = [
        f"  {step.filename}:{step.lineno} in {step.name}"
        for step in traceback.extract_tb(error.__traceback__)
    ]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = f"{frames(cause)}\nthen " if cause is not None else ""
    return before + "\n".join([type(error).__name__, *steps])


class Scrubber(logging.Filter):
    """Shortens UIDs, drops query strings of logged addresses and the values in tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.name in ("uvicorn.access", "httpx"):
            message = _QUERY.sub("", message)
        if record.exc_info and record.exc_info[1] is not None:
            message = f"{message}\n{frames(record.exc_info[1])}"
            record.exc_info = record.exc_text = None
        record.msg, record.args = scrubbed(message), ()
        return True


def install() -> None:
    """Put the scrubber on every handler there is, and silence what quotes header values."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if not any(isinstance(known, Scrubber) for known in handler.filters):
            handler.addFilter(Scrubber())
    for name in ("httpx", "httpcore", "dicomweb_client"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pydicom")  # its warnings quote the header's value
