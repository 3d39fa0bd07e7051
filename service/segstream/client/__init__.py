"""The Python client: numpy images in, label maps out. Does not need torch.

with Client("127.0.0.1:50051") as client, client.stream() as session:
    for result in session.segment(images):
        print(result.frame_index, result.label_map.shape)
"""

from segstream.client.asynchronous import AsyncClient, AsyncSession
from segstream.client.blocking import Client, Session
from segstream.client.channel import ClientTls
from segstream.client.messages import (
    ChannelOrder,
    Frame,
    FrameResult,
    Resumption,
    SessionEnd,
    SessionInfo,
    StageTimings,
    StreamKeywords,
    StreamOptions,
    find_label_set,
)
from segstream.media.images import Image, ImageEncoding
from segstream.media.label_maps import IdSpace, LabelMapEncoding
from segstream.wire import FramePolicy, SessionEndReason, SessionOrigin, SkipReason

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "ChannelOrder",
    "Client",
    "ClientTls",
    "Frame",
    "FramePolicy",
    "FrameResult",
    "IdSpace",
    "Image",
    "ImageEncoding",
    "LabelMapEncoding",
    "Resumption",
    "Session",
    "SessionEnd",
    "SessionEndReason",
    "SessionInfo",
    "SessionOrigin",
    "SkipReason",
    "StageTimings",
    "StreamKeywords",
    "StreamOptions",
    "find_label_set",
]
