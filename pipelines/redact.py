"""What is printed or stored: without secrets (passwords in URLs, keys, tokens, signed queries), and safe to look at."""

import os
import re
from typing import Any, TextIO

HIDDEN = "***"
_LEAST = 6  # characters; shorter values of the environment stand for too much else
_COMMANDING = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SECRET_NAME = re.compile(r"(?i)secret|passw|token|credential|access_key|api_?key|private_key")
_PATTERNS = (
    (re.compile(r"(?i)\b([a-z][a-z0-9+.\-]*://)[^/\s@'\"]+@"), rf"\1{HIDDEN}@"),
    (
        re.compile(
            r"(?i)([?&;](?:x-amz-[a-z-]*(?:signature|credential|token)|signature|awsaccesskeyid|sig|[a-z_-]*token|"
            r"[a-z_-]*key|password|pwd)=)[^&;\s'\"]+"
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (
        re.compile(r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer)\s+)?|bearer\s+)[\w.~+/=-]{6,}"),
        rf"\1{HIDDEN}",
    ),
    (
        re.compile(
            r"(?i)([\w.-]*(?:secret|passwd|password|access[_.-]?key|session[_.-]?token|api[_-]?key)[\w.-]*"
            r"['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&}]{4,}"
        ),
        rf"\1{HIDDEN}",
    ),
)
_URL_PASSWORD = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
_known: set[str] = set()


def remember(value: Any) -> None:
    """Know the passwords of the URLs in a value, to find them where they stand alone."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str) and is_secret_name(str(name)) and len(inner) >= _LEAST:
                _known.add(inner)
            remember(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            remember(inner)
    elif isinstance(value, str):
        _known.update(found for found in _URL_PASSWORD.findall(value) if len(found) >= _LEAST)


def is_secret_name(name: str) -> bool:
    """Whether a setting, variable or key of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str) -> str:
    """The text with *** in place of every secret.

    >>> redact("cannot reach http://ann:hunter2@mlflow:5000/?a=1&X-Amz-Signature=abc123")
    'cannot reach http://***@mlflow:5000/?a=1&X-Amz-Signature=***'
    """
    for value in _secrets():
        text = text.replace(value, HIDDEN)
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text


def redacted(value: Any) -> Any:
    """A value that fits in JSON with every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {name: redacted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner) for inner in value]
    return value


class RedactingStream:
    """A text stream whose writes are redacted: log lines of every library, warnings and traces go through it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without secrets."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write lines without secrets."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _secrets() -> list[str]:
    """Values that stand for themselves, the longest first: of the environment by name, and remembered passwords."""
    named = {value for name, value in os.environ.items() if len(value) >= _LEAST and is_secret_name(name)}
    urls = {found for value in os.environ.values() for found in _URL_PASSWORD.findall(value) if len(found) >= _LEAST}
    files = {value for value in named if value.startswith(("/", "~"))}  # names of files that hold them
    return sorted((named - files) | urls | _known, key=len, reverse=True)


def visible(text: str) -> str:
    """A text from logs or a catalogue on one line of a terminal or page, without what would command either.

    Control characters, among them those that begin a terminal's escape sequences, and those that turn the direction of
    the text after them read as the replacement character.
    """
    return _COMMANDING.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
