"""A whole sparse network against the same network dense."""
