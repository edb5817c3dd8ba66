"""Showers: generator, critic, transform, fit and fast inference."""
