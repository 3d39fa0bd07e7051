"""The network in LitServe: ``python -m segstream.bench.peers.litserve_server PORT``.

One worker with one frame at a time: frames of different sessions have memories of different age,
so a batch would have to be taken apart again, and on a CPU it is no faster.
"""

import base64
import sys
from typing import Any

import litserve
from fastapi import Response
from torch import Tensor

from segstream.bench.peers.plain import PlainSessions


class SegmentationAPI(litserve.LitAPI):  # type: ignore[misc]
    """``POST /predict`` with ``{"session_id", "jpeg"}``, the JPEG as base64."""

    def setup(self, device: str) -> None:
        self._sessions = PlainSessions()

    def decode_request(self, request: Any) -> tuple[str, Tensor]:
        jpeg = base64.b64decode(request["jpeg"])
        return request["session_id"], self._sessions.decode(jpeg)

    def predict(self, inputs: tuple[str, Tensor]) -> Tensor:
        return self._sessions.segment(*inputs)

    def encode_response(self, label_map: Tensor) -> Response:
        return Response(self._sessions.encode(label_map), media_type="image/png")


if __name__ == "__main__":
    server = litserve.LitServer(SegmentationAPI(), accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
