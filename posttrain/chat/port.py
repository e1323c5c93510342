"""Where the page is served, checked before a model is loaded."""

import socket

from posttrain.base.errors import ConfigError

HOST = "127.0.0.1"  # this machine alone


def check_port(port: int) -> None:
    """Check that the page can be served on a port.

    Raises:
        ConfigError: it is out of range, or another program uses it.
    """
    try:
        socket.create_server((HOST, port)).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--port {port}: the page cannot be served there ({error}); give another, such as "
            "--port 7861"
        ) from None
