"""Compile whole steps for TPU slices that are not there, and report what they need and what they hold."""
