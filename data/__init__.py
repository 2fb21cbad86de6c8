"""What we learn from, calibrate on and score on, and the scoring protocol itself."""
