"""Distances between samples, with errors and floors."""
