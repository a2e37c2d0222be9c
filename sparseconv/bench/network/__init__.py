"""The whole network against the same network dense."""
