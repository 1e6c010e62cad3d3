"""Sampling of videos: the sampling loop, scheduler steps, and step caches."""
