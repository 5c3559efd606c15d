"""Time-to-event prediction from longitudinal health records."""
