"""Density maps: generators, critics, transforms, fits and fast inference."""
