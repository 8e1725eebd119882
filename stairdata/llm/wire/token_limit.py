"""What a chat server calls the limit on an answer: OpenAI's servers refuse `max_tokens`, older ones its successor."""

from __future__ import annotations

import re

_OTHER = {"max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}
_UNKNOWN = re.compile(
    r"unsupported|not supported|unrecogni[sz]ed|unknown|unexpected|not (?:permitted|allowed)|additional propert",
    re.IGNORECASE,
)


class TokenLimitName:
    """The name of the limit in chat requests to one server, found out from what it refuses, once.

    OpenAI's newer name is sent first. That a server takes no name at all is up to its error; none is tried twice.
    """

    def __init__(self) -> None:
        self.name = "max_completion_tokens"
        self._is_settled = False

    def settle(self) -> None:
        """Note that a request with this name was answered."""
        self._is_settled = True

    def is_another(self, sent: str, detail: str) -> bool:
        """Return whether a request is to be sent again under `name`, which may have changed.

        Args:
            sent: the name in the request.
            detail: the server's words on refusing it. They may name both: which one to use instead, too.
        """
        # that a value is too large is no reason; nor are the words on a name that was taken before
        if re.search(rf"\b{sent}\b", detail) is None or _UNKNOWN.search(detail) is None:
            return False
        if sent == self.name and not self._is_settled:
            self.name = _OTHER[sent]
        return sent != self.name
