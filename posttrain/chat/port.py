"""Where the page is served, checked before a model is loaded."""

import socket

from posttrain.base.errors import ConfigError

HOST = "127.0.0.1"  # this machine alone


def check_port(port: int) -> None:
    """Refuse a port that cannot be served on.

    Raises:
        ConfigError: it is no port, or another program has it.
    """
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            if port == 0:
                raise OverflowError("0 means any, and the page is served on one that is named")
            tried.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--port {port}: the page cannot be served there ({error}); give another, such as "
                "--port 7861"
            ) from None
