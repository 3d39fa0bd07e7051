"""A bare FastAPI handler: ``python -m segstream.bench.peers.fastapi_server PORT``."""

import sys
import threading
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI, Response

from segstream.bench.peers.plain import PlainSessions


def create_app() -> FastAPI:
    """``POST /segment/{session_id}`` with a JPEG; ``GET /health`` once the model is loaded."""
    app = FastAPI()
    sessions = PlainSessions()
    lock = threading.Lock()

    # FastAPI runs it on a thread pool: decoding and encoding overlap with the network.
    @app.post("/segment/{session_id}")
    def segment(session_id: str, jpeg: Annotated[bytes, Body(media_type="image/jpeg")]) -> Response:
        frame = sessions.decode(jpeg)
        with lock:
            label_map = sessions.segment(session_id, frame)
        return Response(sessions.encode(label_map), media_type="image/png")

    @app.get("/health")
    async def health() -> str:
        return "ok"

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
