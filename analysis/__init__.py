"""Compare generated with reference samples."""
