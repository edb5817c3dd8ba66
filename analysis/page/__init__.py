"""A report as a person reads it: tables, verdict, notes, HTML."""
