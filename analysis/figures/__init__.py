"""Figures of reports and of surrogates; they compute nothing."""
