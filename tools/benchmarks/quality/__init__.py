"""Trains systems on equal minutes, on the same subjects, and scores them alike."""
