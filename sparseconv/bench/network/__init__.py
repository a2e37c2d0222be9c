"""The whole network beside the same network dense."""
