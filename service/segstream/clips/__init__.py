"""Clips: uploaded videos, their jobs and what is made of them."""
