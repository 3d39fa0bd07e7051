"""Segments a camera or a video file: python examples/opencv_stream.py 0|FILE [HOST:PORT]."""

import sys
from itertools import takewhile

import cv2
import numpy as np

from segstream.client import ChannelOrder, Client

source, server = (*sys.argv[1:], "127.0.0.1:50051")[:2]
capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
reads = takewhile(lambda read: read[0], iter(capture.read, None))
images = (np.asarray(image, np.uint8) for _, image in reads)

with Client(server) as client, client.stream(channel_order=ChannelOrder.BGR) as session:
    for result in session.segment(images):
        label_map = result.label_map  # (H, W) uint8, train ids
        print(result.frame_index, np.bincount(label_map.ravel()))
