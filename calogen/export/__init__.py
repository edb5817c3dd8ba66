"""A checkpoint's generator for other people's programs."""
