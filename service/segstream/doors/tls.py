"""The service's certificate, and whose certificates its clients must have."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from segstream.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM files. ``client_ca``: clients must show a certificate that one of these has signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or newer. Raises InvalidInputError for files that cannot be used."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # The empty password: an encrypted key fails instead of asking at the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"tls_cert {self.certificate} with tls_key {self.key} cannot be used: {error}",
                field="tls_cert",
            ) from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError) as error:
                raise InvalidInputError(
                    f"tls_client_ca {self.client_ca} cannot be used: {error}",
                    field="tls_client_ca",
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context
