"""Evaluation of trained models and of critics."""
