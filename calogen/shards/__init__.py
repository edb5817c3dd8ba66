"""Samples on disk and in memory: layouts of files, reading, checking, writing, inspecting."""
