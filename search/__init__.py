"""Spaces, samplers, evaluation, Ray Tune, studies and results."""
