"""What physicists measure on one sample."""
