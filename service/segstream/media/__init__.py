"""Codecs for images, videos and label maps; overlays."""
