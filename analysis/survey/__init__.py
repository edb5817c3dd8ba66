"""One streaming pass over samples, and what is kept of it."""
