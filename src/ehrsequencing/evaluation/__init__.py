"""Honest comparison of survival predictions: anybody's, from predictions and outcomes alone."""
