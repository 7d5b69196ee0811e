"""nginx with the configuration that the project ships, on ports of its own, with a certificate made for the test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import grpc
import urllib3

from ..gateway.door import free_port

SHIPPED = Path(__file__).parents[2] / "build" / "nginx"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CERTIFICATE = ("-x509", "-nodes", "-days", "1", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
SUBJECT = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Proxy:
    """nginx in a folder; a context manager.

    Args:
        folder: Its configuration, certificate, logs and temporary files.
        gateway: Port of the gateway behind it.
        grpc: Port of the gRPC behind it.
    """

    def __init__(self, folder: Path, *, gateway: int = 1, grpc: int = 1) -> None:
        self.folder, self.port, self.grpc_port = folder, free_port(), free_port()
        key, self.certificate = folder / "privkey.pem", folder / "fullchain.pem"
        made = ["openssl", "req", *CERTIFICATE, *SUBJECT, "-keyout", key, "-out", self.certificate]
        subprocess.run(made, check=True, capture_output=True)
        shutil.copy(self.certificate, folder / "clients-ca.pem")
        conf = (SHIPPED / "nvlm.conf").read_text()
        for shipped, here in (
            ("listen 443 ", f"listen 127.0.0.1:{self.port} "),
            ("listen 8443 ", f"listen 127.0.0.1:{self.grpc_port} "),
            ("/etc/nginx/tls/", f"{folder}/"),
            ("/var/log/nginx/", f"{folder}/"),
        ):
            assert shipped in conf
            conf = conf.replace(shipped, here)
        (folder / "nvlm.conf").write_text(conf)
        temporary = "".join(f"{name}_temp_path {folder}/{name};\n" for name in TEMPORARY)
        (folder / "nginx.conf").write_text(
            ("user root;\n" if os.geteuid() == 0 else "")
            + f"daemon off;\npid {folder}/pid;\nevents {{}}\nhttp {{\n{temporary}include nvlm.conf;\n}}\n"
        )
        self.servers(gateway=gateway, grpc=grpc)

    def servers(self, *, gateway: int, grpc: int = 1) -> None:
        """Write where the servers are."""
        text = (SHIPPED / "nvlm-servers.conf").read_text()
        assert "127.0.0.1:8000" in text
        assert "127.0.0.1:8001" in text
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{gateway}").replace("127.0.0.1:8001", f"127.0.0.1:{grpc}")
        (self.folder / "nvlm-servers.conf").write_text(text)

    def reload(self) -> None:
        """As `nginx -s reload`; returns when the new workers have taken over."""
        before = self._workers()
        self._process.send_signal(signal.SIGHUP)
        wait_until(lambda: (now := self._workers()) and not now & before, "new workers alone")

    def _workers(self) -> set[str]:
        """Those that take connections: of older ones the title says that they shut down."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        titles = {child: Path(f"/proc/{child}/cmdline") for child in children}
        return {child for child, title in titles.items() if title.exists() and b"shutting" not in title.read_bytes()}

    @property
    def log(self) -> str:
        """What was asked."""
        return (self.folder / "nvlm.log").read_text()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        """A request on a connection of its own, and its whole answer."""
        answer = self.stream(method, path, body, headers)
        assert answer.data is not None
        return answer

    def stream(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        """A request on a connection of its own; of its answer only the head is read."""
        url = f"https://127.0.0.1:{self.port}{path}"
        with urllib3.PoolManager(ca_certs=str(self.certificate), retries=False, timeout=30) as pool:
            return pool.request(method, url, body=body, headers=headers, preload_content=False)

    def channel(self, *, with_certificate: bool = True) -> grpc.Channel:
        """Calls of gRPC go through it."""
        own = self.certificate.read_bytes()
        key = (self.folder / "privkey.pem").read_bytes()
        credentials = grpc.ssl_channel_credentials(own, *((key, own) if with_certificate else ()))
        return grpc.secure_channel(f"127.0.0.1:{self.grpc_port}", credentials)

    def __enter__(self) -> Proxy:
        assert NGINX is not None
        command = [NGINX, "-p", self.folder, "-e", self.folder / "error.log", "-c", self.folder / "nginx.conf"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def listens() -> bool:
            assert self._process.poll() is None, (self.folder / "error.log").read_text()
            with socket.socket() as one:
                return one.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(listens, "nginx listens")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)


def event(answer: urllib3.BaseHTTPResponse) -> bytes:
    """The next event of a stream; nothing at the end."""
    while (line := answer.readline()) == b"\n":  # type: ignore[attr-defined]
        continue
    return bytes(line).strip()


def wait_until(holds, what: str, seconds: float = 20) -> None:  # type: ignore[no-untyped-def]
    """Look again and again."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, what
        time.sleep(0.01)
