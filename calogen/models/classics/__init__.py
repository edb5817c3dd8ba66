"""Networks of earlier work, to compare with."""
