"""INT8: calibration, scales, Q/DQ placement and the check of what engines would refuse."""
