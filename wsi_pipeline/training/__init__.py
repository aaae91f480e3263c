"""Training on labelled patch stores: split by patient, fit, calibrate, report."""
